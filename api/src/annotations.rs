//! Annotations with a meaning of this project's own: what Kubernetes objects have no field for.

/// How often starting the pod's container has been tried again, a decimal number. Written by the
/// kubelet.
pub const RETRY_COUNT: &str = "miniku/retry-count";

/// When the kubelet starts the pod's container next, an RFC 3339 time. It is there only while a
/// start is being waited for.
pub const NEXT_RETRY_AT: &str = "miniku/next-retry-at";
