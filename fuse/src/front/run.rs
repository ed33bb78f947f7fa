//! How a call is run: at once on the thread that received the request where it can be, else on the
//! network runtime.

use std::future::Future;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use fuser::Request;
use gridvfs_vfs::{Error, Result};

use super::Front;
use crate::counters::Operation;
use crate::locality;

impl Front {
    /// Runs a call; `finish` replies, here or on the network runtime.
    pub(super) fn run<T: Send + 'static>(
        &self,
        request: &Request,
        operation: Operation,
        call: impl Future<Output = Result<T>> + Send + 'static,
        finish: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        self.counters.count(operation);
        if !matches!(operation, Operation::Read | Operation::Write) {
            locality::arrived(request.pid(), 0);
        }
        let began = Instant::now();
        let _runtime = self.core.runtime.enter();
        let mut call = Box::pin(call);
        if let Poll::Ready(result) = call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            finish(result);
            return self.counters.took(operation, began);
        }
        let entry = self.pending.add(request.pid());
        let counters = self.counters.clone();
        self.core.runtime.spawn(async move {
            let result = tokio::select! {
                biased;
                result = call => result,
                () = entry.cancelled() => Err(Error::Interrupted),
            };
            drop(entry);
            finish(result);
            counters.took(operation, began);
        });
    }

    /// The same for calls that must be carried out though nobody waits any more.
    pub(super) fn run_to_the_end<T: Send + 'static>(
        &self,
        request: &Request,
        operation: Operation,
        call: impl Future<Output = Result<T>> + Send + 'static,
        finish: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let (core, runtime) = (self.core.clone(), self.core.runtime.clone());
        core.note_change();
        let mut call = Box::pin(async move {
            let result = call.await;
            core.note_change();
            result
        });
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let whole = async move {
            // At hand already: no task needed.
            let first = std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context)));
            if let Poll::Ready(result) = first.await {
                return result;
            }
            runtime.spawn(async move {
                let _ = sender.send(call.await);
            });
            receiver.await.unwrap_or(Err(Error::Interrupted))
        };
        self.run(request, operation, whole, finish);
    }
}
