//! executor-macros
