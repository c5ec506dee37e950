//! The faces of the store.
