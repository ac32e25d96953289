//! `edgeprobe exporter`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::Mutex;

use super::signals::Signals;
use super::{ENCODERS, TASKS_BEFORE_EVENTS};
use crate::cli::ExporterArgs;
use crate::kernel::memory;
use crate::logging;
use crate::model::Snapshot;
use crate::serve::http;
use crate::serve::unix::client;

/// For the daemon to answer; a scrape commonly has ten seconds.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until it is told to end.
pub fn run(args: &ExporterArgs) -> anyhow::Result<ExitCode> {
    logging::init(args.log_level);
    memory::give_back_large();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(ENCODERS)
        .event_interval(TASKS_BEFORE_EVENTS)
        .build()
        .context("cannot start the server")?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let listener = http::bind(args.listen)?;
        tracing::info!(
            "ready: http://{}",
            listener.local_addr().context("cannot use the address")?
        );
        let daemon = DaemonClient::new(args.socket.clone());
        tokio::select! {
            () = http::serve(listener, daemon) => {}
            _ = signals.end() => {}
        }
        Ok(ExitCode::SUCCESS)
    });
    runtime.shutdown_background();
    result
}

/// The daemon at the other end of the socket.
struct DaemonClient {
    socket: PathBuf,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    /// The latest answer, with the moment it was asked for.
    answer: Option<(Instant, Result<Arc<Snapshot>, String>)>,
    /// What was said about the daemon last; `None` before anything was.
    up: Option<bool>,
}

impl DaemonClient {
    fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            last: Mutex::default(),
        }
    }
}

impl http::LatestSnapshot for DaemonClient {
    const IS_EXPORTER: bool = true;

    /// Asks the daemon. Those who ask while another one waits share the next
    /// answer: nobody gets a snapshot that was asked for before he asked.
    async fn latest(&self) -> Result<Arc<Snapshot>, String> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((when, answer)) = &last.answer
            && *when >= asked
        {
            return answer.clone();
        }
        let when = Instant::now();
        // The same snapshot is neither sent nor read twice; whether it is fresh still is
        // for the daemon to say.
        let known = (last.answer.as_ref()).and_then(|(_, answer)| answer.clone().ok());
        let answer = client::fetch_newer(&self.socket, known, TIMEOUT)
            .await
            .map_err(|error| error.to_string());
        let up = answer.is_ok();
        if last.up != Some(up) {
            match &answer {
                Ok(_) => tracing::info!("the daemon answers on {}", self.socket.display()),
                Err(error) => tracing::warn!("{error}"),
            }
        }
        last.up = Some(up);
        last.answer = Some((when, answer.clone()));
        answer
    }

    /// This process does its work whether or not there is a daemon.
    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tokio::net::UnixListener;

    use super::*;
    use crate::sampler::fake::{Fake, block};
    use crate::serve::http::LatestSnapshot;
    use crate::serve::unix::server;

    #[test]
    fn the_daemon_comes_and_goes_and_no_old_snapshot_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let remote = DaemonClient::new(path.clone());
        let fake = Fake::default();
        let (sampler, _thread) = fake.spawn(Duration::from_millis(10));
        block(async {
            let error = remote.latest().await.unwrap_err();
            assert!(error.contains("no daemon"), "{error}");

            let listener = UnixListener::bind(&path).unwrap();
            let daemon = tokio::spawn(server::serve(listener, sampler.clone()));
            let first = remote.latest().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            let second = remote.latest().await.unwrap();
            assert!(second.tcp[0].opened > first.tcp[0].opened);

            daemon.abort();
            let _ = daemon.await;
            assert!(remote.latest().await.is_err());
            assert_eq!(remote.health(), Ok(()));

            std::fs::remove_file(&path).unwrap();
            let listener = UnixListener::bind(&path).unwrap();
            tokio::spawn(server::serve(listener, sampler));
            assert!(remote.latest().await.is_ok());
        });
        assert!(fake.snapshots.load(Ordering::Relaxed) > 1);
    }

    #[test]
    fn many_scrapes_at_once_are_few_questions() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let remote = DaemonClient::new(path.clone());
        let (sampler, _thread) = Fake::default().spawn(Duration::from_secs(60));
        block(async {
            assert!(sampler.first().await);
            let listener = UnixListener::bind(&path).unwrap();
            // A daemon that counts its clients.
            let (pass, inner) = (directory.path().join("y.sock"), sampler);
            let behind = UnixListener::bind(&pass).unwrap();
            tokio::spawn(server::serve(behind, inner));
            let count = tokio::spawn(async move {
                let mut count = 0;
                let idle = Duration::from_millis(500);
                while let Ok(accepted) = tokio::time::timeout(idle, listener.accept()).await {
                    count += 1;
                    let mut client = accepted.unwrap().0;
                    let mut daemon = tokio::net::UnixStream::connect(&pass).await.unwrap();
                    tokio::spawn(async move {
                        tokio::io::copy_bidirectional(&mut client, &mut daemon).await
                    });
                }
                count
            });
            let remote = &remote;
            let scrapes = async || remote.latest().await.unwrap();
            tokio::join!(
                scrapes(),
                scrapes(),
                scrapes(),
                scrapes(),
                scrapes(),
                scrapes()
            );
            let count = count.await.unwrap();
            assert!((1..=2).contains(&count), "{count} questions");
        });
    }
}
