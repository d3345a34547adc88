//! executor-core
