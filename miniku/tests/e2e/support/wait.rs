//! Waiting for a condition, with a deadline, in the one place where tests wait.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Long enough for a loaded machine, short enough for a person to see a test fail.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Asks again and again until `probe` has a result; after [`PATIENCE`] the test fails with the
/// last reason why there was none.
pub(crate) async fn wait_for<T, E: Display>(
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(reason) if Instant::now() >= deadline => {
                panic!("waited {} s for this: {what}; but {reason}", PATIENCE.as_secs())
            }
            Err(_) => sleep(POLL).await,
        }
    }
}

/// `Ok` if it holds; a reason to wait on otherwise.
pub(crate) fn holds(condition: bool, otherwise: impl Display) -> Result<(), String> {
    if condition { Ok(()) } else { Err(otherwise.to_string()) }
}
