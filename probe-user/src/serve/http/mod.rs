//! HTTP: metrics, health and status.
//!
//! One request for each connection: every connection has a deadline, so that
//! what a client can occupy is bounded in number and in time. A client that is silent or
//! slow is evicted for one that comes ([`Clients`]). All that scrape one
//! snapshot in one form share one body ([`Bodies`]), and take turns at being sent a
//! piece of it ([`turns`]).

mod bodies;
mod pages;
mod turns;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use self::bodies::{Bodies, Form};
use self::turns::{Left, Paced, Turns};
use super::clients::{Activity, Clients};
use crate::export::{Format, negotiate};
use crate::model::Snapshot;

/// Connections that are served at a time. A silent one takes some hundred bytes.
const MAX_CONNECTIONS: usize = 1024;
/// Connections that may wait until they are served; the kernel caps it.
const BACKLOG: u32 = 1024;
/// What the kernel holds of an answer for each connection, in bytes; it doubles this.
const SEND_BUFFER: u32 = 64 << 10;
/// For the head of a request to arrive.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// For a whole connection.
const DEADLINE: Duration = Duration::from_secs(30);
/// Largest head of a request.
const MAX_HEAD: usize = 8 << 10;

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
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        // What is accepted inherits it.
        socket.set_send_buffer_size(SEND_BUFFER)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
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
    serve_at_most(listener, source, MAX_CONNECTIONS).await;
}

async fn serve_at_most(listener: TcpListener, source: impl LatestSnapshot, most: usize) {
    let clients = Clients::new("HTTP", most);
    let server = Arc::new(Server {
        source,
        bodies: Bodies::default(),
        turns: Arc::default(),
        clients: Arc::clone(&clients),
    });
    let accept = || async { Ok(listener.accept().await?.0) };
    let serve = |stream, activity| Arc::clone(&server).client(stream, activity);
    clients.serve_all(accept, serve).await;
}

/// What all connections share.
struct Server<L> {
    source: L,
    bodies: Bodies,
    turns: Arc<Turns>,
    clients: Arc<Clients>,
}

impl<L: LatestSnapshot> Server<L> {
    async fn client(self: Arc<Self>, stream: TcpStream, activity: Arc<Activity>) {
        let served = tokio::time::timeout(DEADLINE, self.connection(stream, &activity)).await;
        match served {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("HTTP: {error:#}"),
            Err(_) => tracing::debug!("HTTP: a client took longer than {DEADLINE:?}"),
        }
    }

    async fn connection(
        self: &Arc<Self>,
        stream: TcpStream,
        activity: &Arc<Activity>,
    ) -> anyhow::Result<()> {
        // A silent client takes no buffers.
        tokio::time::timeout(HEAD_DEADLINE, stream.readable())
            .await
            .context("a client was silent")?
            .context("connection")?;
        let stream = Paced::new(stream, &self.turns, Arc::clone(activity)).context("connection")?;
        let left = stream.left();
        let service = service_fn(|request| {
            activity.moves();
            let client = Client {
                activity: Arc::clone(activity),
                left: left.clone(),
            };
            let server = Arc::clone(self);
            async move { Ok::<_, Infallible>(respond(&request, &server, &client).await) }
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
}

/// Whom a request is from.
struct Client {
    activity: Arc<Activity>,
    left: Left,
}

type Page = Response<Full<Bytes>>;

async fn respond<L: LatestSnapshot>(
    request: &Request<Incoming>,
    server: &Server<L>,
    client: &Client,
) -> Page {
    let source = &server.source;
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
        "/metrics" => metrics(request, server, client).await,
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

async fn metrics<L: LatestSnapshot>(
    request: &Request<Incoming>,
    server: &Server<L>,
    client: &Client,
) -> Page {
    let form = Form {
        format: Format::from_accept(&list(request, header::ACCEPT)),
        gzip: negotiate::accepts_gzip(&list(request, header::ACCEPT_ENCODING)),
    };
    let snapshot = server.source.latest().await.ok();
    let body = server.bodies.get(snapshot, L::IS_EXPORTER, form).await;
    match body {
        Ok(body) => {
            server.clients.sends(&client.activity, &body);
            client.left.set(body.len());
            let mut page = page(StatusCode::OK, form.format.content_type(), body);
            let headers = page.headers_mut();
            let vary = HeaderValue::from_static("Accept, Accept-Encoding");
            headers.insert(header::VARY, vary);
            if form.gzip {
                let gzip = HeaderValue::from_static("gzip");
                headers.insert(header::CONTENT_ENCODING, gzip);
            }
            page
        }
        Err(error) => failure(&error),
    }
}

/// All headers of a name as the one list that they are.
fn list(request: &Request<Incoming>, name: HeaderName) -> String {
    let mut list = String::new();
    for value in request.headers().get_all(name) {
        list.push_str(value.to_str().unwrap_or_default());
        list.push(',');
    }
    list
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

fn page(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Page {
    let mut page = Response::new(Full::new(body.into()));
    *page.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    page.headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    page
}

#[cfg(test)]
mod tests;
