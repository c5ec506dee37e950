//! Where the applied state is kept on disk, and its twin in memory.
