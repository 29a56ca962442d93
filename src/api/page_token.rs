//! Page sizes and page tokens.
//!
//! A token is the place at which the list continues and a MAC over that place and the filters of
//! the list. So the daemon detects a forged token and a token of another list. The key lives as
//! long as the daemon.

use aws_lc_rs::hmac;
use tls_sessiond_types::hex;

use super::error::Refusal;

/// Items of a page when the request has no page size.
const PAGE_SIZE: usize = 100;
/// The most items of one page.
const PAGE_SIZE_MAX: usize = 1000;
/// Bytes of the MAC in a token: a truncated HMAC-SHA-256.
const TAG: usize = 16;

/// Makes and verifies page tokens.
pub(crate) struct PageTokens(hmac::Key);

impl PageTokens {
    pub(crate) fn new() -> Result<Self, tls_sessiond_core::connection::Error> {
        hmac::Key::generate(hmac::HMAC_SHA256, &aws_lc_rs::rand::SystemRandom::new())
            .map(Self)
            .map_err(|_| tls_sessiond_core::connection::Error::NoRandomness)
    }

    /// Checks a page size of a request. 0 means [`PAGE_SIZE`].
    ///
    /// # Errors
    /// [`Refusal::PageSizeInvalid`] outside of 0 to [`PAGE_SIZE_MAX`].
    pub(crate) fn size(wanted: i32) -> Result<usize, Refusal> {
        match usize::try_from(wanted) {
            Ok(0) => Ok(PAGE_SIZE),
            Ok(size) if size <= PAGE_SIZE_MAX => Ok(size),
            _ => Err(Refusal::PageSizeInvalid(wanted)),
        }
    }

    /// Returns a token that continues the list of these `filters` at `place`.
    pub(crate) fn token(&self, filters: &[&str], place: &[u8]) -> String {
        let tag = self.tag(filters, place);
        hex::string(&[place, &tag.as_ref()[..TAG]].concat())
    }

    /// Returns the place in a token, or `None` for the empty token of the first page.
    ///
    /// # Errors
    /// [`Refusal::PageTokenInvalid`] for a token that this daemon did not make for these `filters`.
    pub(crate) fn place(&self, filters: &[&str], token: &str) -> Result<Option<Vec<u8>>, Refusal> {
        if token.is_empty() {
            return Ok(None);
        }
        // `hex::read` also accepts forms that people type. A token is copied, so only the form that
        // the daemon wrote is valid.
        let read = hex::read(token).filter(|bytes| hex::string(bytes) == token);
        let mut bytes = read.ok_or(Refusal::PageTokenInvalid)?;
        let split = bytes
            .len()
            .checked_sub(TAG)
            .ok_or(Refusal::PageTokenInvalid)?;
        let tag = bytes.split_off(split);
        let expected = self.tag(filters, &bytes);
        aws_lc_rs::constant_time::verify_slices_are_equal(&tag, &expected.as_ref()[..TAG])
            .map_err(|_| Refusal::PageTokenInvalid)?;
        Ok(Some(bytes))
    }

    fn tag(&self, filters: &[&str], place: &[u8]) -> hmac::Tag {
        let mut signing = hmac::Context::with_key(&self.0);
        for filter in filters {
            signing.update(&(filter.len() as u64).to_be_bytes());
            signing.update(filter.as_bytes());
        }
        signing.update(place);
        signing.sign()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_good_for_its_own_list_only() {
        let pages = PageTokens::new().unwrap();
        let token = pages.token(&["list", "a"], b"place");
        assert_eq!(
            pages.place(&["list", "a"], &token).unwrap().unwrap(),
            b"place"
        );
        assert!(pages.place(&["list", "b"], &token).is_err());
        assert!(pages.place(&["lista", ""], &token).is_err());
        assert!(
            PageTokens::new()
                .unwrap()
                .place(&["list", "a"], &token)
                .is_err()
        );
        assert!(pages.place(&["list", "a"], "").unwrap().is_none());
        for bad in [
            "zz",
            "00",
            &token[2..],
            &token.to_uppercase(),
            &format!("{token}00"),
        ] {
            assert!(pages.place(&["list", "a"], bad).is_err(), "{bad}");
        }
    }

    // Invariant 6.
    #[test]
    fn page_sizes_have_a_default_and_a_limit() {
        assert_eq!(PageTokens::size(0).unwrap(), 100);
        assert_eq!(PageTokens::size(1000).unwrap(), 1000);
        assert!(
            PageTokens::size(1001).is_err()
                && PageTokens::size(-1).is_err()
                && PageTokens::size(i32::MIN).is_err()
        );
    }
}
