//! TLS alerts: their names, and the alert that rustls sent.

use std::fmt;

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible, PeerMisbehaved};

/// A fatal alert that ended a connection (RFC 8446 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alert {
    /// The AlertDescription.
    pub code: u8,
    /// Whether the peer sent it.
    pub received: bool,
}

impl Alert {
    /// Returns the name of the alert in RFC 8446, or `unknown`.
    pub fn name(self) -> &'static str {
        match self.code {
            0 => "close_notify",
            10 => "unexpected_message",
            20 => "bad_record_mac",
            22 => "record_overflow",
            30 => "decompression_failure",
            40 => "handshake_failure",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            50 => "decode_error",
            51 => "decrypt_error",
            70 => "protocol_version",
            71 => "insufficient_security",
            80 => "internal_error",
            86 => "inappropriate_fallback",
            90 => "user_canceled",
            100 => "no_renegotiation",
            109 => "missing_extension",
            110 => "unsupported_extension",
            112 => "unrecognized_name",
            113 => "bad_certificate_status_response",
            115 => "unknown_psk_identity",
            116 => "certificate_required",
            120 => "no_application_protocol",
            _ => "unknown",
        }
    }
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.received { "received" } else { "sent" };
        write!(f, "fatal alert {way}: {} ({})", self.name(), self.code)
    }
}

/// Returns the AlertDescription of the last record, if that record is an unencrypted fatal alert:
/// type 21, length 2, level 2.
pub fn in_clear(records: &[u8]) -> Option<u8> {
    match records.last_chunk()? {
        [21, 3, _, 0, 2, 2, code] => Some(*code),
        _ => None,
    }
}

/// Returns the alert that rustls most likely sent for an error. For workers that run rustls
/// themselves, where the alert cannot be observed.
pub fn for_error(error: &Error) -> Alert {
    Alert {
        code: described(error).into(),
        received: false,
    }
}

fn described(error: &Error) -> AlertDescription {
    match error {
        Error::InvalidMessage(invalid) => AlertDescription::from(*invalid),
        Error::InvalidCertificate(invalid) => certificate(invalid),
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            AlertDescription::UnexpectedMessage
        }
        Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
        Error::DecryptError => AlertDescription::BadRecordMac,
        Error::NoCertificatesPresented => AlertDescription::CertificateRequired,
        Error::NoApplicationProtocol => AlertDescription::NoApplicationProtocol,
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic,
        ) => AlertDescription::ProtocolVersion,
        Error::PeerIncompatible(_) => AlertDescription::HandshakeFailure,
        Error::PeerMisbehaved(
            PeerMisbehaved::IncorrectBinder
            | PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme
            | PeerMisbehaved::SignedKxWithWrongAlgorithm,
        ) => AlertDescription::DecryptError,
        Error::PeerMisbehaved(_) => AlertDescription::IllegalParameter,
        _ => AlertDescription::InternalError,
    }
}

fn certificate(error: &CertificateError) -> AlertDescription {
    AlertDescription::from(error.clone())
}
