//! The applied state: keys, their revisions, leases.
