//! The `tracing` span in which a task was submitted, carried to where it runs. Without the feature this is nothing: a type
//! without size, and a call that is inlined.

/// The span that was current where this was made.
#[derive(Clone, Debug)]
pub(crate) struct Here {
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

impl Here {
    #[inline]
    pub(crate) fn now() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: tracing::Span::current(),
        }
    }

    /// Runs `work` in that span.
    #[inline]
    pub(crate) fn within<R>(&self, work: impl FnOnce() -> R) -> R {
        #[cfg(feature = "tracing")]
        let _entered = self.span.enter();
        work()
    }

    /// `work`, to be run in that span.
    #[inline]
    pub(crate) fn carry<R>(
        self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> impl FnOnce() -> R + Send + 'static {
        move || self.within(work)
    }
}
