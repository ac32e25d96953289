//! Just enough HTTP to read a page.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

/// A page.
#[derive(Clone, Debug)]
pub struct Page {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// An address of the loopback on which nobody listens just now.
///
/// # Panics
///
/// Where no port is free.
pub fn free_address() -> SocketAddr {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    free.local_addr().expect("its address")
}

/// All that comes back for a request with these headers.
fn answer(address: SocketAddr, path: &str, headers: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\nConnection: close\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Gets a page from the namespace of the calling thread.
pub fn get(address: SocketAddr, path: &str, accept: &str) -> io::Result<Page> {
    let bytes = answer(address, path, &format!("Accept: {accept}"))?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::other("no end of the header"))?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| io::Error::other("no status"))?;
    let body = if head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        unchunk(body)?
    } else {
        body.to_owned()
    };
    Ok(Page { status, body })
}

/// Gets a page compressed with gzip, and unpacks it with the program of that name.
///
/// # Errors
///
/// There is no page, or it is not compressed.
pub fn get_compressed(address: SocketAddr, path: &str, accept: &str) -> io::Result<Vec<u8>> {
    let headers = format!("Accept: {accept}\r\nAccept-Encoding: gzip");
    let bytes = answer(address, path, &headers)?;
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let (head, body) = bytes.split_at(end.ok_or(io::ErrorKind::UnexpectedEof)? + 4);
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    if !head.contains("\r\ncontent-encoding: gzip\r\n") {
        return Err(io::Error::other(head));
    }
    let mut gzip = Command::new("gzip")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = gzip.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let body = body.to_vec();
    let feed = thread::spawn(move || stdin.write_all(&body));
    let output = gzip.wait_with_output()?;
    let fed = feed.join().map_err(|_| io::ErrorKind::BrokenPipe)?;
    fed?;
    if !output.status.success() {
        return Err(io::Error::other(format!("gzip: {}", output.status)));
    }
    Ok(output.stdout)
}

fn unchunk(mut rest: &str) -> io::Result<String> {
    let mut body = String::new();
    loop {
        let broken = || io::Error::other("a broken chunk");
        let (size, after) = rest.split_once("\r\n").ok_or_else(broken)?;
        let size = usize::from_str_radix(size, 16).map_err(|_| broken())?;
        if size == 0 {
            return Ok(body);
        }
        body.push_str(after.get(..size).ok_or_else(broken)?);
        rest = after.get(size + 2..).ok_or_else(broken)?;
    }
}

/// The value of a sample in the Prometheus text form: a metric and all its
/// labels, as the line begins.
pub fn sample(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix(series)?.strip_prefix(' ')?;
        value.split(' ').next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        assert_eq!(
            unchunk("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").ok().as_deref(),
            Some("abcde")
        );
        assert!(unchunk("9\r\nabc\r\n").is_err());
    }

    #[test]
    fn samples_are_found_by_their_whole_name() {
        let text = "a_total{x=\"1\"} 5\na_total_more 7\n";
        assert_eq!(sample(text, "a_total{x=\"1\"}"), Some(5.0));
        assert_eq!(sample(text, "a_total"), None);
    }
}
