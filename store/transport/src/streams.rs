//! The calls of one connection, carried out by the connection's own task.
//!
//! The HTTP/2 library asks for a task for each call, or for more (it calls one a stream). On its own
//! each would be made, queued for some thread and woken for its answer, which costs as much as a good
//! part of a small call. Here they are polled where their connection is: however many are woken at
//! once, as all that waited for one batch of writes are, it is one task that runs, and what they
//! answer leaves together.
//!
//! ```text
//! woken: poll the calls that were woken | poll the connection | poll the calls that came by it
//! ```
//! A server gives what lasts, such as a watch or a long answer, a task after [`SHORT_POLLS`], so that
//! one connection may keep several threads busy. What takes long in one piece does not belong in a
//! call's poll, such as reading from a disk. An answer of many megabytes is still encoded there, and
//! holds up its own connection for so long.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::task::coop::has_budget_remaining;

/// A call with one answer is polled as it comes, when its turn in a batch has come, and perhaps when
/// a part of it was late.
const SHORT_POLLS: u8 = 8;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The calls of one connection that are under way. Dropped, it ends them.
pub struct Streams {
    arrivals: Arrivals,
    under_way: FuturesUnordered<Call>,
    /// How often a call is polled here before it is given a task; `None`: it never is.
    short_polls: Option<u8>,
    lasting: JoinSet<()>,
}

/// Takes the calls from the HTTP/2 library.
#[derive(Clone, Default)]
pub struct Arrivals(Arc<Mutex<Vec<Work>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Arrivals {
    fn execute(&self, work: F) {
        self.0.lock().push(Box::pin(work));
    }
}

/// Ends when the call does; or before, with what is left of one that lasts.
struct Call {
    /// Until it is handed on.
    work: Option<Work>,
    /// How often it is still polled here; `None`: for as long as it lasts.
    polls_left: Option<u8>,
}

impl Future for Call {
    type Output = Option<Work>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Work>> {
        // One task has a budget for all of its requests. Without any left a poll would be in vain, and
        // a wake-up now lets the connection have its turn first.
        if !has_budget_remaining() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        match &mut self.polls_left {
            Some(0) => return Poll::Ready(self.work.take()),
            Some(polls) => *polls -= 1,
            None => {}
        }
        let Some(work) = &mut self.work else { return Poll::Ready(None) };
        // A call that panics does not take its connection along, as little as a task would.
        match AssertUnwindSafe(work).catch_unwind().poll_unpin(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => Poll::Ready(None),
        }
    }
}

impl Streams {
    /// Of a server: what lasts is given a task.
    pub fn of_server() -> Self {
        Self::new(Some(SHORT_POLLS))
    }

    /// Of a client, which has nothing to do for a call but to hand its answer on.
    pub fn of_client() -> Self {
        Self::new(None)
    }

    fn new(short_polls: Option<u8>) -> Self {
        Self {
            arrivals: Arrivals::default(),
            under_way: FuturesUnordered::new(),
            short_polls,
            lasting: JoinSet::new(),
        }
    }

    /// To be given to the connection that [`Streams::drive`] is called with.
    pub fn arrivals(&self) -> Arrivals {
        self.arrivals.clone()
    }

    /// Carries out a connection and its calls until the connection ends. May be given up and
    /// called again.
    pub async fn drive<C: Future>(&mut self, mut connection: Pin<&mut C>) -> C::Output {
        poll_fn(|context| {
            self.poll_under_way(context);
            if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                return Poll::Ready(ended);
            }
            // Those that are answered at once wake the connection, so it is polled again.
            let arrived = std::mem::take(&mut *self.arrivals.0.lock());
            if !arrived.is_empty() {
                let polls_left = self.short_polls;
                let calls = arrived.into_iter().map(|work| Call { work: Some(work), polls_left });
                self.under_way.extend(calls);
                self.poll_under_way(context);
            }
            Poll::Pending
        })
        .await
    }

    fn poll_under_way(&mut self, context: &mut Context<'_>) {
        while let Poll::Ready(Some(rest)) = self.under_way.poll_next_unpin(context) {
            if let Some(lasting) = rest {
                while self.lasting.try_join_next().is_some() {}
                self.lasting.spawn(lasting);
            }
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        // A call holds a handle of these arrivals: those that nobody took would keep each other.
        drop(std::mem::take(&mut *self.arrivals.0.lock()));
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// A connection that brings requests, and ends when it is told to.
    async fn connection(arrivals: Arrivals, requests: Vec<Work>, end: oneshot::Receiver<()>) {
        requests.into_iter().for_each(|request| arrivals.execute(request));
        end.await.unwrap();
    }

    #[tokio::test]
    async fn requests_are_carried_out_until_their_connection_ends() {
        let mut streams = Streams::of_server();
        let (say, hear) = oneshot::channel();
        let (answer, answered) = oneshot::channel();
        let (end, ends) = oneshot::channel();
        let (say_late, late) = oneshot::channel();
        let (never, is_dropped) = oneshot::channel::<()>();
        let requests: Vec<Work> = vec![
            Box::pin(async {
                let heard: u8 = hear.await.unwrap();
                answer.send(heard + 1).unwrap();
            }),
            Box::pin(async { panic!("this one fails") }),
            Box::pin(async {
                for _ in 0..=SHORT_POLLS {
                    tokio::task::yield_now().await;
                }
                say_late.send(()).unwrap();
            }),
            Box::pin(async move {
                let _never = never;
                std::future::pending::<()>().await;
            }),
        ];
        let connection = connection(streams.arrivals(), requests, ends);
        tokio::pin!(connection);
        let client = async {
            say.send(1).unwrap();
            assert_eq!(answered.await.unwrap(), 2);
            late.await.unwrap();
        };
        tokio::select! {
            () = streams.drive(connection.as_mut()) => panic!("the connection goes on"),
            () = client => {}
        }
        assert_eq!(streams.lasting.len(), 1);
        end.send(()).unwrap();
        streams.drive(connection).await;
        drop(streams);
        assert!(is_dropped.await.is_err());
    }

    #[tokio::test]
    async fn a_client_carries_out_what_lasts_too() {
        let mut streams = Streams::of_client();
        let (end, ends) = oneshot::channel();
        let request: Work = Box::pin(async {
            for _ in 0..=SHORT_POLLS {
                tokio::task::yield_now().await;
            }
            end.send(()).unwrap();
        });
        let connection = connection(streams.arrivals(), vec![request], ends);
        tokio::pin!(connection);
        streams.drive(connection).await;
        assert!(streams.lasting.is_empty());
    }

    #[tokio::test]
    async fn what_came_as_the_connection_ended_is_dropped() {
        let mut streams = Streams::of_server();
        let (never, is_dropped) = oneshot::channel::<()>();
        let arrivals = streams.arrivals();
        let connection = async {
            let same = arrivals.clone();
            arrivals.execute(async move {
                let _kept = (never, same);
            });
        };
        tokio::pin!(connection);
        streams.drive(connection).await;
        drop(streams);
        assert!(is_dropped.await.is_err());
    }

    #[tokio::test]
    async fn more_requests_than_a_task_has_budget_for_are_not_taken_for_lasting_ones() {
        const REQUESTS: u16 = 4096;
        let mut streams = Streams::of_server();
        let (wake, woken) = tokio::sync::watch::channel(());
        let answers = Arc::new(Mutex::new(0));
        let requests: Vec<Work> = (0..REQUESTS)
            .map(|_| {
                let (mut woken, answers) = (woken.clone(), Arc::clone(&answers));
                Box::pin(async move {
                    woken.changed().await.unwrap();
                    *answers.lock() += 1;
                }) as Work
            })
            .collect();
        let (end, ends) = oneshot::channel();
        let connection = connection(streams.arrivals(), requests, ends);
        tokio::pin!(connection);
        let client = async {
            tokio::task::yield_now().await;
            wake.send(()).unwrap();
            while *answers.lock() < REQUESTS {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = streams.drive(connection.as_mut()) => panic!("the connection goes on"),
            () = client => {}
        }
        assert!(streams.lasting.is_empty());
        drop(end);
    }
}
