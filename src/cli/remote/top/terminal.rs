//! The terminal while `top` draws on it. It is left as it was found, also after a panic.

use std::{
    io::{self, Stdout},
    panic,
};

use crossterm::{
    cursor::Show,
    execute,
    style::force_color_output,
    terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use ratatui::{Frame, Terminal, backend::CrosstermBackend, layout::Size};

use super::view::Palette;

/// The terminal of this process, in raw mode and on its alternate screen until this value is dropped.
pub(super) struct LiveTerminal {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    /// Dropped after `terminal`.
    _restore: RestoreOnDrop,
}

impl LiveTerminal {
    /// Begins raw mode and enters the alternate screen. A panic leaves both before its message is
    /// printed.
    ///
    /// # Errors
    /// The terminal refuses it. It is left as it was found.
    pub(super) fn enter(palette: Palette) -> io::Result<Self> {
        // crossterm drops colours if NO_COLOR is set, which `--color always` overrides.
        force_color_output(palette == Palette::Colored);
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            restore();
            print(info);
        }));
        let restore = RestoreOnDrop;
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen)?;
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        Ok(Self {
            terminal,
            _restore: restore,
        })
    }

    /// Returns the size of the terminal.
    ///
    /// # Errors
    /// The terminal cannot be asked.
    pub(super) fn size(&self) -> io::Result<Size> {
        self.terminal.size()
    }

    /// Draws a frame. Only cells that changed are written.
    ///
    /// # Errors
    /// The terminal cannot be written.
    pub(super) fn draw(&mut self, render: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(render).map(drop)
    }
}

/// Restores the terminal when it is dropped.
struct RestoreOnDrop;

impl Drop for RestoreOnDrop {
    fn drop(&mut self) {
        restore();
    }
}

/// Ends raw mode, leaves the alternate screen and shows the cursor. The terminal may have gone away
/// after SIGHUP, so errors have no remedy.
fn restore() {
    drop(disable_raw_mode());
    drop(execute!(io::stdout(), LeaveAlternateScreen, Show));
}
