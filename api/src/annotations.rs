//! Annotations with a meaning of this project's own: what Kubernetes objects have no field for.

/// How often starting the pod's container has been tried again, restarts and failed starts together,
/// a decimal number. Written by the kubelet while a start that failed is to be tried again; without
/// it the container's restart count says the same.
pub const RETRY_COUNT: &str = "miniku/retry-count";

/// When the kubelet starts the pod's container next, an RFC 3339 time. It is there only while a
/// start is being waited for.
pub const NEXT_RETRY_AT: &str = "miniku/next-retry-at";
