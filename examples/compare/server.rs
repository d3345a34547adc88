//! A small HTTP server on the loopback, for pages that answer late, wrongly or not in time.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// How long the pages take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    /// Of an ordinary page, and of "not found".
    pub(crate) page: Duration,
    /// Of `/slow`.
    pub(crate) slow: Duration,
}

/// Serves `/page/<bytes>`, `/slow` and otherwise 404, until the program ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Server {
    address: SocketAddr,
}

impl Server {
    /// Starts on a port that is free.
    ///
    /// The thread is never joined: it holds nothing but its socket, and the end of the program closes that.
    ///
    /// # Errors
    ///
    /// The system gives no port or no thread.
    pub(crate) fn start(latency: Latency) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        thread::Builder::new().name("server".to_owned()).spawn(move || {
            for connection in listener.incoming() {
                // A connection that fails is its client's to report.
                let Ok(connection) = connection else { continue };
                let _refused = thread::Builder::new().spawn(move || serve(&connection, latency));
            }
        })?;
        Ok(Self { address })
    }

    /// The address of a page of that many bytes.
    pub(crate) fn page(&self, bytes: usize) -> String {
        format!("http://{}/page/{bytes}", self.address)
    }

    /// The address of a page that answers after [`Latency::slow`].
    pub(crate) fn slow(&self) -> String {
        format!("http://{}/slow", self.address)
    }

    /// An address without a page.
    pub(crate) fn missing(&self) -> String {
        format!("http://{}/missing", self.address)
    }
}

/// The text of the 404 page.
pub(crate) const NOT_FOUND: &str = "no such page\n";

/// Answers one request and hangs up.
fn serve(connection: &TcpStream, latency: Latency) -> io::Result<()> {
    let mut request = BufReader::new(connection).lines();
    let first = request.next().unwrap_or_else(|| Ok(String::new()))?;
    // The headers say nothing we need, but a client may not like being answered before it has sent them.
    for line in request {
        if line?.is_empty() {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let (status, body) = match path.strip_prefix("/page/").map(str::parse) {
        Some(Ok(bytes)) => ("200 OK", "x".repeat(bytes)),
        _ if path == "/slow" => ("200 OK", "late\n".to_owned()),
        _ => ("404 Not Found", NOT_FOUND.to_owned()),
    };
    thread::sleep(if path == "/slow" { latency.slow } else { latency.page });
    let mut writer = connection;
    write!(
        writer,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
