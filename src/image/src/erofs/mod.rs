//! The EROFS writer.
