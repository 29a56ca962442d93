//! Session ticket keys that servers share (RFC 5077, RFC 8446 section 4.6.1), and their rotation.
//!
//! A [`ring::Ring`] has three epochs: the one before, the current one, and the next one. A member is a
//! server. It is told which epochs it opens and with which one it encrypts, and it acknowledges what it
//! runs. The rotation waits for acknowledgements, so no member ever gets a ticket of another member that
//! it cannot open.
//!
//! Nothing here knows sockets, clocks or tasks: the time comes with each call.
//!
//! The modules, in reading order. Each imports only modules below it:

pub mod saved; // a ring on disk, sealed

pub mod shared; // a ring that several daemons share

pub mod ticket; // tickets that the daemon seals itself

pub mod ring; // epochs, members, phases

pub mod epoch; // the secret of an epoch, and the keys made of it
