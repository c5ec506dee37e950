//! Messages above the limit: gRPC libraries do not agree on how to refuse them, and clients of etcd
//! know the words of Go's.

use http::Response;
use tonic::body::Body;
use tonic::{Code, Status};

/// How the library that is used here begins.
const TONIC_TEXT: &str = "Error, decoded message length too large: found ";

/// Lets a refusal of a message for its size read as etcd's.
pub(crate) fn as_etcd(status: Status) -> Status {
    if status.code() != Code::OutOfRange {
        return status;
    }
    let numbers = status
        .message()
        .strip_prefix(TONIC_TEXT)
        .and_then(|rest| rest.strip_suffix(" bytes"))
        .and_then(|rest| rest.split_once(" bytes, the limit is: "));
    match numbers {
        Some((found, limit)) => Status::resource_exhausted(format!(
            "grpc: received message larger than max ({found} vs. {limit})"
        )),
        None => status,
    }
}

/// The same for a whole response.
pub(super) fn mend(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::OutOfRange => {
            let mended = as_etcd(status);
            if mended.code() == Code::OutOfRange { response } else { mended.into_http() }
        }
        _ => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_message_that_is_too_large_is_mended() {
        let text = format!("{TONIC_TEXT}2097157 bytes, the limit is: 2097152 bytes");
        let mended = as_etcd(Status::out_of_range(text));
        assert_eq!(mended.code(), Code::ResourceExhausted);
        assert_eq!(
            mended.message(),
            "grpc: received message larger than max (2097157 vs. 2097152)"
        );
        let compacted = Status::from(crate::RequestError::Compacted);
        assert_eq!(as_etcd(compacted.clone()).message(), compacted.message());
    }
}
