//! How messages are written and read: protobuf, in buffers that fit a usual call.
//!
//! The gRPC library makes a buffer for each message it reads and each it writes before it knows how
//! long that is: of 8 KiB unless told otherwise. An etcd call takes a few hundred bytes. The library
//! asks for room for a message when it has read how long it is, though all of it may be there already:
//! so it takes twice that. Longer ones grow their buffer. A stream keeps its two buffers as long as it
//! lasts, and there are thousands.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstDecoder, ProstEncoder};

const BUFFER_BYTES: usize = 1000;
/// Of a stream whose messages come faster than they leave, as much is put into one frame.
const YIELD_BYTES: usize = 32 << 10;

/// Writes `T` and reads `U`.
#[derive(Debug)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }
}
