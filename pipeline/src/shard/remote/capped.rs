//! HTTP clients that read listings up to a bound. `object_store` takes in the whole answer to a
//! `PROPFIND` before it looks at it, however long the server goes on.

use std::pin::Pin;

use futures_util::StreamExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService, ReqwestConnector,
};

/// The text by which such an error is known, once it has passed through `object_store`.
pub(super) const OVER: &str = "the listing of a folder has more than";

/// Makes clients whose listings have at most so many bytes.
#[derive(Debug)]
pub(super) struct Capped(pub u64);

impl HttpConnector for Capped {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Service { client, limit: self.0 }))
    }
}

#[derive(Debug)]
struct Service {
    client: HttpClient,
    limit: u64,
}

type Answer = Result<HttpResponse, HttpError>;

impl HttpService for Service {
    // As the macro of the crate `async-trait` would write it.
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let lists = request.method().as_str() == "PROPFIND";
            let answer = self.client.execute(request).await?;
            if !lists {
                return Ok(answer);
            }
            let (parts, body) = answer.into_parts();
            Ok(HttpResponse::from_parts(parts, within(self.limit, body).await?.into()))
        })
    }
}

/// All of `body`, which may have `limit` bytes.
async fn within(limit: u64, body: HttpResponseBody) -> Result<Vec<u8>, HttpError> {
    let (mut all, mut stream) = (Vec::new(), body.bytes_stream());
    while let Some(bytes) = stream.next().await {
        let bytes = bytes?;
        if all.len() as u64 + bytes.len() as u64 > limit {
            let text = format!("{OVER} {limit} bytes (limit)");
            return Err(HttpError::new(HttpErrorKind::Decode, std::io::Error::other(text)));
        }
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}
