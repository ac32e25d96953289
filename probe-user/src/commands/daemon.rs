//! `edgeprobe daemon`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::net::UnixListener;

use super::configure;
use super::signals::Signals;
use super::stdout::print;
use super::{ENCODERS, TASKS_BEFORE_EVENTS};
use crate::cli::DaemonArgs;
use crate::config::Config;
use crate::kernel::memory;
use crate::logging;
use crate::sampler::{self, ConnectionSource, SamplerThread};
use crate::serve::unix::endpoint::Endpoint;
use crate::serve::{http, unix};

/// For the collector to detach in order; after it the kernel does so when the
/// process ends.
const DETACH: Duration = Duration::from_millis(1500);

/// Runs until it is told to end; `start` loads and attaches what it collects from.
pub fn run<S: ConnectionSource + 'static>(
    args: &DaemonArgs,
    start: fn(&Config) -> anyhow::Result<S>,
) -> anyhow::Result<ExitCode> {
    let config = configure::for_daemon(args)?;
    if args.check_config {
        print("configuration is valid\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    logging::init(args.collect.log_level);
    memory::give_back_large();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(ENCODERS)
        .event_interval(TASKS_BEFORE_EVENTS)
        .build()
        .context("cannot start the servers")?;
    let result = runtime.block_on(serve(config, start));
    // Clients that hang are not waited for.
    runtime.shutdown_background();
    result
}

async fn serve<S: ConnectionSource + 'static>(
    config: Config,
    start: fn(&Config) -> anyhow::Result<S>,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    // What can fail for a trivial reason comes before anything is attached.
    let mut endpoint = Endpoint::lock(&config.daemon)?;
    let http = config.metrics.listen.map(http::bind).transpose()?;
    let listener = UnixListener::from_std(endpoint.bind()?).context("cannot use the socket")?;

    let interval = config.daemon.snapshot_interval;
    let endpoints = match &http {
        Some(http) => format!(
            "{} and http://{}",
            config.daemon.socket.display(),
            http.local_addr().context("cannot use the address")?
        ),
        None => config.daemon.socket.display().to_string(),
    };
    let (sampler, mut thread) = sampler::spawn(interval, move || start(&config))?;

    let servers = async {
        tokio::join!(unix::server::serve(listener, sampler.clone()), async {
            if let Some(http) = http {
                http::serve(http, sampler.clone()).await;
            }
        });
    };
    let ready = async {
        if sampler.first().await {
            // What cannot start says one thing only.
            if let Some(advice) = endpoint.advice() {
                tracing::warn!("{advice}");
            }
            tracing::info!("ready: {endpoints}");
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = servers => {}
        () = ready => {}
        result = thread.ended() => {
            result?;
            anyhow::bail!("the collector stopped unexpectedly: this is a bug");
        }
        _ = signals.end() => {}
    }
    detach(&mut thread, &mut signals).await
}

/// Ends the collector, for as long as there is patience for it.
async fn detach(thread: &mut SamplerThread, signals: &mut Signals) -> anyhow::Result<ExitCode> {
    tracing::info!("detaching");
    thread.stop();
    tokio::select! {
        result = tokio::time::timeout(DETACH, thread.ended()) => match result {
            Ok(result) => result?,
            Err(_) => tracing::warn!("the collector is busy: leaving the rest to the kernel"),
        },
        number = signals.end() => {
            tracing::warn!("second signal: leaving the rest to the kernel");
            return Ok(ExitCode::from(128 + u8::try_from(number).unwrap_or_default()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use nix::sys::signal::{Signal, raise};

    use super::*;
    use crate::sampler::fake::{Fake, Running, block};
    use crate::serve::unix::{Request, client};

    fn config(directory: &Path) -> Config {
        let mut config = Config::default();
        config.daemon.socket = directory.join("x.sock");
        config.daemon.socket_group = nix::unistd::Group::from_gid(nix::unistd::getegid())
            .unwrap()
            .map(|group| group.name);
        config.metrics.listen = Some("127.0.0.1:0".parse().unwrap());
        config
    }

    /// Serves, sends the signals once the daemon answers, and says what came
    /// of it and how long the end took.
    fn serve_and_signal(
        config: &Config,
        start: fn(&Config) -> anyhow::Result<Running>,
        signals: &[Signal],
    ) -> (anyhow::Result<ExitCode>, Duration) {
        let socket = config.daemon.socket.clone();
        let serving = serve(config.clone(), start);
        block(async {
            let sending = async {
                while !socket.exists() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                let answer = client::fetch_async(&socket, Request::default(), DETACH / 3).await;
                let begin = Instant::now();
                for &signal in signals {
                    raise(signal).unwrap();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                (answer, begin)
            };
            let (result, (_, begin)) = tokio::join!(serving, sending);
            (result, begin.elapsed())
        })
    }

    /// One test, since signals go to the whole process.
    #[test]
    fn signals_end_the_daemon_in_time_and_leave_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let left = || std::fs::read_dir(directory.path()).unwrap().count();

        let quick = |_: &Config| Fake::default().start();
        let hangup = [Signal::SIGHUP, Signal::SIGINT];
        let (result, time) = serve_and_signal(&config, quick, &hangup);
        assert_eq!(result.unwrap(), ExitCode::SUCCESS);
        assert!(time < Duration::from_secs(1), "{time:?}");
        assert_eq!(left(), 0);

        // The collector is in the middle of a snapshot.
        let busy = |_: &Config| {
            Fake {
                delay: Duration::from_secs(5),
                ..Fake::default()
            }
            .start()
        };
        let (result, time) = serve_and_signal(&config, busy, &[Signal::SIGTERM]);
        assert_eq!(result.unwrap(), ExitCode::SUCCESS);
        // Two seconds are promised; this machine may have others to serve.
        assert!(time < Duration::from_secs(4), "{time:?}");
        assert_eq!(left(), 0);

        let twice = [Signal::SIGTERM, Signal::SIGTERM];
        let (result, time) = serve_and_signal(&config, busy, &twice);
        assert_eq!(result.unwrap(), ExitCode::from(143));
        assert!(time < Duration::from_secs(1), "{time:?}");
        assert_eq!(left(), 0);
    }

    #[test]
    fn a_collector_that_does_not_start_ends_the_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let error = block(serve(config, |_| {
            anyhow::bail!("no BTF") as anyhow::Result<Running>
        }));
        assert_eq!(error.unwrap_err().to_string(), "no BTF");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_address_in_use_is_found_before_anything_is_attached() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        config.metrics.listen = Some(taken.local_addr().unwrap());
        let error = block(serve(config, |_| -> anyhow::Result<Running> {
            panic!("was started")
        }));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("another program does"), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
