//! executor-process
