//! Counts the gRPC calls of clients, under the names of Go's Prometheus interceptors, as etcd does.
//!
//! A call is over when its last message and its code have gone out; one whose client goes away
//! before that ends as `Canceled`. The JSON gateway's calls are no gRPC calls here.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};
use prost::Message as _;
use prost_types::{FileDescriptorSet, MethodDescriptorProto};
use tokio::time::Instant;
use tonic::Code;

use crate::metrics::Metrics;

/// The services that are measured; the peer protocol is not for clients.
const PACKAGES: [&str; 4] = ["etcdserverpb", "v3lockpb", "v3electionpb", "grpc.health.v1"];
const STATUS_HEADER: &str = "grpc-status";
const FRAME_HEADER_BYTES: usize = 5;

/// gRPC's codes as Go prints them, by their numbers.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// What is counted of each method, by its path.
pub(super) struct Calls {
    methods: HashMap<String, Arc<Method>>,
    metrics: Arc<Metrics>,
}

struct Method {
    started: IntCounter,
    handled: [IntCounter; CODES.len()],
    received: IntCounter,
    sent: IntCounter,
    seconds: Histogram,
}

impl Calls {
    /// # Errors
    /// Descriptors that cannot be read, or a name that is used already.
    pub(super) fn new(metrics: &Arc<Metrics>) -> Result<Self, CallsError> {
        let families = Families::new(metrics.registry())?;
        let mut methods = HashMap::new();
        for set in [store_proto::FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET] {
            let files = FileDescriptorSet::decode(set)?.file;
            for file in files.iter().filter(|file| PACKAGES.contains(&file.package())) {
                for service in &file.service {
                    let name = format!("{}.{}", file.package(), service.name());
                    for method in &service.method {
                        let path = format!("/{name}/{}", method.name());
                        methods.insert(path, Arc::new(families.method(&name, method)));
                    }
                }
            }
        }
        Ok(Self { methods, metrics: Arc::clone(metrics) })
    }

    /// Begins a call, if that is the path of a method.
    pub(super) fn begin(&self, path: &str) -> Option<Call> {
        let method = Arc::clone(self.methods.get(path)?);
        method.started.inc();
        Some(Call { method, metrics: Arc::clone(&self.metrics), begun: Instant::now(), code: None })
    }
}

/// Why calls cannot be counted: a mistake in the program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallsError {
    #[error("the services' descriptors cannot be read")]
    Descriptors(#[from] prost::DecodeError),
    #[error("a metric cannot be made")]
    Metrics(#[from] prometheus::Error),
}

struct Families {
    started: IntCounterVec,
    handled: IntCounterVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    seconds: HistogramVec,
}

impl Families {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let labels = ["grpc_type", "grpc_service", "grpc_method"];
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let seconds = HistogramVec::new(
            HistogramOpts::new("grpc_server_handling_seconds", "How long calls took."),
            &labels,
        )?;
        registry.register(Box::new(seconds.clone()))?;
        let with_code = [&labels[..], &["grpc_code"]].concat();
        Ok(Self {
            started: counter("grpc_server_started_total", "Calls that began.", &labels)?,
            handled: counter("grpc_server_handled_total", "Calls that ended.", &with_code)?,
            received: counter("grpc_server_msg_received_total", "Messages received.", &labels)?,
            sent: counter("grpc_server_msg_sent_total", "Messages sent.", &labels)?,
            seconds,
        })
    }

    fn method(&self, service: &str, method: &MethodDescriptorProto) -> Method {
        let kind = match (method.client_streaming(), method.server_streaming()) {
            (false, false) => "unary",
            (true, false) => "client_stream",
            (false, true) => "server_stream",
            (true, true) => "bidi_stream",
        };
        let labels = [kind, service, method.name()];
        Method {
            started: self.started.with_label_values(&labels),
            handled: CODES
                .map(|code| self.handled.with_label_values(&[kind, service, method.name(), code])),
            received: self.received.with_label_values(&labels),
            sent: self.sent.with_label_values(&labels),
            seconds: self.seconds.with_label_values(&labels),
        }
    }
}

/// One call; it is over when this is dropped.
pub(super) struct Call {
    method: Arc<Method>,
    metrics: Arc<Metrics>,
    begun: Instant,
    code: Option<Code>,
}

impl Call {
    /// Counts what comes of a request.
    pub(super) fn received<B>(&self, body: B) -> Received<B> {
        Received {
            body,
            messages: Messages::default(),
            method: Arc::clone(&self.method),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// Counts what goes out in answer; with it the call is over.
    pub(super) fn sent<B>(mut self, response: Response<B>) -> Response<Sent<B>> {
        self.notice(response.headers());
        response.map(|body| Sent { body, messages: Messages::default(), call: self })
    }

    fn notice(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(STATUS_HEADER) {
            self.code = Some(Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        self.method.handled[code as usize].inc();
        self.method.seconds.observe(self.begun.elapsed().as_secs_f64());
    }
}

/// Finds the messages in a stream of bytes: each has a flag and its length before it.
#[derive(Default)]
struct Messages {
    header: [u8; FRAME_HEADER_BYTES],
    header_bytes: usize,
    /// What is still to come of the present message.
    remaining_bytes: usize,
}

impl Messages {
    /// How many messages end in the next bytes, and how many of the bytes are theirs.
    fn count(&mut self, mut data: &[u8]) -> (u64, u64) {
        let (mut messages, mut bytes) = (0, 0);
        while !data.is_empty() {
            if self.header_bytes < FRAME_HEADER_BYTES {
                let taken = data.len().min(FRAME_HEADER_BYTES - self.header_bytes);
                self.header[self.header_bytes..self.header_bytes + taken]
                    .copy_from_slice(&data[..taken]);
                self.header_bytes += taken;
                data = &data[taken..];
                if self.header_bytes < FRAME_HEADER_BYTES {
                    break;
                }
                let [_, a, b, c, d] = self.header;
                self.remaining_bytes = u32::from_be_bytes([a, b, c, d]) as usize;
            }
            let taken = data.len().min(self.remaining_bytes);
            data = &data[taken..];
            bytes += taken as u64;
            self.remaining_bytes -= taken;
            if self.remaining_bytes == 0 {
                messages += 1;
                self.header_bytes = 0;
            }
        }
        (messages, bytes)
    }
}

/// The body of a request, counted.
pub(super) struct Received<B> {
    body: B,
    messages: Messages,
    method: Arc<Method>,
    metrics: Arc<Metrics>,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Received<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let (messages, bytes) = self.messages.count(data);
            self.method.received.inc_by(messages);
            self.metrics.received_bytes.add(bytes);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, counted.
pub(crate) struct Sent<B> {
    body: B,
    messages: Messages,
    call: Call,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Sent<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            if let Some(data) = frame.data_ref() {
                let (messages, bytes) = self.messages.count(data);
                self.call.method.sent.inc_by(messages);
                self.call.metrics.sent_bytes.add(bytes);
            } else if let Some(trailers) = frame.trailers_ref() {
                self.call.notice(trailers);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_wherever_the_data_is_cut() {
        let stream =
            [&[0, 0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0, 0], &[1, 0, 0, 0, 1], b"d"].concat();
        for cut in 0..=stream.len() {
            let mut messages = Messages::default();
            let (first, second) = (messages.count(&stream[..cut]), messages.count(&stream[cut..]));
            assert_eq!((first.0 + second.0, first.1 + second.1), (3, 4), "cut at {cut}");
        }
    }

    #[test]
    fn every_service_for_clients_is_measured() {
        let calls = Calls::new(&Arc::new(Metrics::new().unwrap())).unwrap();
        for path in [
            "/etcdserverpb.KV/Range",
            "/etcdserverpb.Watch/Watch",
            "/etcdserverpb.Maintenance/Snapshot",
            "/v3lockpb.Lock/Lock",
            "/v3electionpb.Election/Observe",
            "/grpc.health.v1.Health/Check",
        ] {
            assert!(calls.methods.contains_key(path), "{path}");
        }
        assert!(!calls.methods.keys().any(|path| path.contains("minikupeer")));
    }
}
