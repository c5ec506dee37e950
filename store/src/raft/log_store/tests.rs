//! The log as openraft uses it.

mod suite;
