//! Looks for fewer calls that still show a difference, whichever: first those at the beginning are
//! left out, then ever smaller pieces.

use crate::generate::Plan;
use crate::run::{Calls, Difference, Ended, Setup, run};

/// Runs that may be spent on it.
const MAX_RUNS: usize = 150;

/// The fewest calls found, with what they show; none when the difference does not show again.
pub(crate) async fn shrink(
    plan: Plan,
    setup: &Setup,
    calls: Calls,
) -> Option<(Box<Difference>, Calls)> {
    let Ended::Different(difference) = run(plan, setup, &calls).await else { return None };
    let mut best = (calls.up_to(difference.number), difference);
    let mut runs = 0;
    let mut piece = best.0.len().div_ceil(2);
    loop {
        let mut at = 0;
        loop {
            let numbers = best.0.numbers();
            // The last one shows it.
            let Some(left_out) = numbers.get(at..(at + piece).min(numbers.len().saturating_sub(1)))
            else {
                break;
            };
            if left_out.is_empty() || runs == MAX_RUNS {
                break;
            }
            runs += 1;
            let fewer = best.0.without(left_out);
            match run(plan, setup, &fewer).await {
                Ended::Different(difference) => {
                    best = (fewer.up_to(difference.number), difference);
                }
                Ended::Same | Ended::Broken(_) => at += piece,
            }
        }
        if piece == 1 || runs == MAX_RUNS {
            return Some((best.1, best.0));
        }
        piece = piece.div_ceil(2);
    }
}
