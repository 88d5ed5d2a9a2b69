//! A panic costs one request, and is counted.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::{CatchPanicLayer, ResponseForPanic};

use crate::{api::ApiError, telemetry::metrics::Metrics};

/// Answers `internal` where what it wraps panics.
#[must_use]
pub fn layer(
    metrics: Arc<Metrics>,
) -> CatchPanicLayer<impl ResponseForPanic<ResponseBody = axum::body::Body>> {
    CatchPanicLayer::custom(move |_| -> Response {
        metrics.http.panicked();
        ApiError::Internal.into_response()
    })
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::Ready};

    use axum::body::Body;
    use http::{Request, StatusCode};
    use tower::{ServiceBuilder, ServiceExt};

    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_and_counted_wherever_it_comes() {
        let metrics = Metrics::new();
        let layer = layer(metrics.clone());
        let at_once = ServiceBuilder::new()
            .layer(layer.clone())
            .service_fn(|_: Request<()>| -> Ready<Result<Response, Infallible>> { panic!("call") });
        let later = ServiceBuilder::new()
            .layer(layer)
            .service_fn(|_: Request<()>| async {
                tokio::task::yield_now().await;
                if true {
                    panic!("poll");
                }
                Ok::<_, Infallible>(Response::new(Body::empty()))
            });

        let answers = [
            at_once.oneshot(Request::new(())).await.unwrap(),
            later.oneshot(Request::new(())).await.unwrap(),
        ];

        for answer in answers {
            assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        }
        assert!(metrics.encode().contains("gateway_panics_total 2"));
    }
}
