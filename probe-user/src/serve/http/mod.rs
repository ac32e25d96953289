//! HTTP: metrics, health and status.
//!
//! One request for each connection: every connection has a deadline, so that
//! what a client can occupy is bounded in number and in time. Where all slots are
//! taken, the connection that has had one longest is closed: no client that is
//! silent or slow keeps another one waiting.

mod pages;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::export::{Exposition, Format};
use crate::model::Snapshot;

/// Connections that are served at a time.
const MAX_CONNECTIONS: usize = 32;
/// How long one keeps its slot where others wait: an answer takes milliseconds.
const SLOT_TIME: Duration = Duration::from_secs(1);
/// For the head of a request to arrive.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// For a whole connection.
const DEADLINE: Duration = Duration::from_secs(30);
/// Largest head of a request.
const MAX_HEAD: usize = 8 << 10;
/// After a failure to accept, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Who has the latest snapshot: the sampler of this process, or a daemon.
pub trait LatestSnapshot: Send + Sync + 'static {
    /// A fresh snapshot, or why there is none.
    fn latest(&self) -> impl Future<Output = Result<Arc<Snapshot>, String>> + Send;
    /// Whether this process does its work; if not, why.
    fn health(&self) -> Result<(), String>;
    /// Whether the snapshots are those of another process.
    const IS_EXPORTER: bool;
}

impl LatestSnapshot for crate::sampler::Sampler {
    const IS_EXPORTER: bool = false;

    async fn latest(&self) -> Result<Arc<Snapshot>, String> {
        crate::sampler::Sampler::latest(self)
            .map(|published| Arc::clone(&published.snapshot))
            .map_err(|error| error.to_string())
    }

    fn health(&self) -> Result<(), String> {
        crate::sampler::Sampler::health(self).map_err(|error| error.to_string())
    }
}

/// Binds the address; needs a runtime.
pub fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bind = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    bind().map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow!(
            "cannot listen on {address}: another program does; stop that one, or choose another address with --listen"
        ),
        std::io::ErrorKind::AddrNotAvailable => anyhow!(
            "cannot listen on {address}: it is no address of this host; choose another one with --listen"
        ),
        _ => anyhow!(error).context(format!("cannot listen on {address}")),
    })
}

/// Serves clients until it is dropped.
pub async fn serve(listener: TcpListener, source: impl LatestSnapshot) {
    let source = Arc::new(source);
    let mut slots = Slots::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept an HTTP connection: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let source = Arc::clone(&source);
        let slot = slots.find().await;
        let task = tokio::spawn(async move {
            let served = tokio::time::timeout(DEADLINE, connection(stream, &source)).await;
            match served {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("HTTP: {error:#}"),
                Err(_) => tracing::debug!("HTTP: a client took longer than {DEADLINE:?}"),
            }
            drop(slot);
        });
        slots.taken.push_back((Instant::now(), task.abort_handle()));
    }
}

/// Who is served.
struct Slots {
    free: Arc<Semaphore>,
    /// Since when and by whom, the oldest first; some may have ended.
    taken: VecDeque<(Instant, AbortHandle)>,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            free: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            taken: VecDeque::new(),
        }
    }
}

impl Slots {
    /// A slot, once there is one. `None` never comes: the semaphore is not closed.
    async fn find(&mut self) -> Option<OwnedSemaphorePermit> {
        self.taken.retain(|(_, task)| !task.is_finished());
        let free = || Arc::clone(&self.free).acquire_owned();
        if let Some((since, oldest)) = self.taken.front() {
            tokio::select! {
                biased;
                slot = free() => return slot.ok(),
                () = tokio::time::sleep_until(*since + SLOT_TIME) => oldest.abort(),
            }
        }
        free().await.ok()
    }
}

async fn connection(stream: TcpStream, source: &Arc<impl LatestSnapshot>) -> anyhow::Result<()> {
    let service = service_fn(|request| {
        let source = Arc::clone(source);
        async move { Ok::<_, Infallible>(respond(&request, &*source).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_header_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .context("connection")
}

type Page = Response<Full<Bytes>>;

async fn respond(request: &Request<Incoming>, source: &impl LatestSnapshot) -> Page {
    let known = ["/", "/metrics", "/healthz", "/readyz", "/status"];
    let path = request.uri().path();
    if !known.contains(&path) {
        return text(StatusCode::NOT_FOUND, "no such page: see /\n".into());
    }
    // The server leaves the body out of an answer to HEAD.
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut page = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".into());
        let allow = HeaderValue::from_static("GET, HEAD");
        page.headers_mut().insert(header::ALLOW, allow);
        return page;
    }
    match path {
        "/metrics" => metrics(request, source).await,
        "/healthz" => verdict(source.health()),
        "/readyz" => verdict(source.latest().await.map(drop)),
        "/status" => match pages::status(source.latest().await) {
            Ok(body) => page(StatusCode::OK, "application/json", body),
            Err(error) => failure(&error.into()),
        },
        _ => page(
            StatusCode::OK,
            "text/html; charset=utf-8",
            pages::index().into_bytes(),
        ),
    }
}

async fn metrics<L: LatestSnapshot>(request: &Request<Incoming>, source: &L) -> Page {
    let mut accept = String::new();
    for value in request.headers().get_all(header::ACCEPT) {
        accept.push_str(value.to_str().unwrap_or_default());
        accept.push(',');
    }
    let format = Format::from_accept(&accept);
    let process = crate::kernel::process::read();
    if let Err(error) = &process {
        tracing::warn!("cannot read what this process costs: {error:#}");
    }
    let exposition = Exposition {
        snapshot: source.latest().await.ok(),
        process: process.ok(),
        is_exporter: L::IS_EXPORTER,
    };
    match exposition.encode(format) {
        Ok(body) => {
            let mut page = page(StatusCode::OK, format.content_type(), body);
            let vary = HeaderValue::from_static("Accept");
            page.headers_mut().insert(header::VARY, vary);
            page
        }
        Err(error) => failure(&error),
    }
}

fn verdict(result: Result<(), String>) -> Page {
    match result {
        Ok(()) => text(StatusCode::OK, "ok\n".into()),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

fn failure(error: &anyhow::Error) -> Page {
    tracing::error!("HTTP: {error:#}");
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n"))
}

fn text(status: StatusCode, body: String) -> Page {
    page(status, "text/plain; charset=utf-8", body.into_bytes())
}

fn page(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Page {
    let mut page = Response::new(Full::from(body));
    *page.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    page.headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    page
}

#[cfg(test)]
mod tests;
