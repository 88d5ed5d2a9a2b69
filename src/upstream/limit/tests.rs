use std::{convert::Infallible, future::pending};

use tower::{ServiceBuilder, ServiceExt, service_fn};

use super::*;
use crate::upstream::{Priority, fixtures};

fn stuck(
    layer: &LimitLayer,
) -> impl Service<PageRequest, Response = (), Error = UpstreamError, Future: Send> + Clone + use<> {
    ServiceBuilder::new()
        .layer(layer.clone())
        .service(service_fn(|_| async {
            pending::<Infallible>().await;
            Ok(())
        }))
}

#[tokio::test]
async fn beyond_slots_and_queue_a_call_is_refused_at_once() {
    let service = stuck(&LimitLayer::new(1, 1));
    let running = tokio::spawn(service.clone().oneshot(fixtures::request("")));
    let waiting = tokio::spawn(service.clone().oneshot(fixtures::request("")));
    tokio::task::yield_now().await;

    let refused = service.clone().oneshot(fixtures::request("")).await;

    assert!(matches!(refused, Err(UpstreamError::Overloaded)));
    assert!(!running.is_finished() && !waiting.is_finished());
}

#[tokio::test]
async fn a_dropped_call_gives_its_slot_to_the_next() {
    let layer = LimitLayer::new(1, 1);
    let service = stuck(&layer);
    let running = tokio::spawn(service.clone().oneshot(fixtures::request("")));
    tokio::task::yield_now().await;
    let slots = layer.slots.clone();
    let waiting = tokio::spawn(async move {
        let slot = slots
            .acquire(&fixtures::waiters(Priority::Waiting, "crm"))
            .await;
        slot.is_ok()
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());

    running.abort();

    assert!(waiting.await.unwrap());
    assert_eq!(*layer.slots.free.lock(), 1);
}

#[tokio::test]
async fn who_waits_goes_before_a_refresh() {
    let layer = LimitLayer::new(1, 8);
    let slot = layer.slots.take().unwrap();
    let order: Arc<Mutex<Vec<Priority>>> = Arc::default();
    let waiting: Vec<_> = [
        Priority::Background,
        Priority::HasFallback,
        Priority::Waiting,
    ]
    .map(|priority| {
        let (slots, order) = (layer.slots.clone(), order.clone());
        tokio::spawn(async move {
            let slot = slots
                .acquire(&fixtures::waiters(priority, "crm"))
                .await
                .unwrap();
            order.lock().push(priority);
            drop(slot);
        })
    })
    .into();
    tokio::task::yield_now().await;

    drop(slot);

    for task in waiting {
        task.await.unwrap();
    }
    assert_eq!(
        *order.lock(),
        [
            Priority::Waiting,
            Priority::HasFallback,
            Priority::Background
        ]
    );
}
