//! A small server: connections are accepted here and served by worker processes, so a request that crashes its worker
//! costs one connection.
//!
//! `cargo run --example serve -- 127.0.0.1:8080`, then `curl 127.0.0.1:8080`. Without an address it serves three
//! requests of its own and ends.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use concurrent_futures::{Fd, ProcessPoolExecutor};

/// Answers one request. Runs in a worker process.
fn serve(connection: Fd<TcpStream>) -> Result<(), String> {
    let mut connection = connection.into_inner();
    let mut request = String::new();
    BufReader::new(&connection).read_line(&mut request).map_err(|error| error.to_string())?;
    if request.contains("/crash") {
        std::process::abort();
    }
    let body = format!("worker process {} was asked {:?}\n", std::process::id(), request.trim_end());
    let length = body.len();
    write!(connection, "HTTP/1.0 200 OK\r\ncontent-length: {length}\r\n\r\n{body}")
        .map_err(|error| error.to_string())
}

fn main() -> Result<(), Box<dyn Error>> {
    let pool = ProcessPoolExecutor::with_default_workers()?;
    if let Some(address) = std::env::args().nth(1) {
        for connection in TcpListener::bind(address)?.incoming() {
            pool.submit(serve, Fd::new(connection?)).add_done_callback(|outcome| {
                if let Err(error) = outcome {
                    eprintln!("a connection was lost: {error}");
                }
            });
        }
        return Ok(());
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    for path in ["/", "/crash", "/again"] {
        let mut client = TcpStream::connect(address)?;
        writeln!(client, "GET {path} HTTP/1.0\r")?;
        let served = pool.submit(serve, Fd::new(listener.accept()?.0));
        let mut answer = String::new();
        match client.read_to_string(&mut answer) {
            Ok(_) if !answer.is_empty() => print!("{}", answer.lines().last().unwrap_or_default()),
            _ => print!("no answer"),
        }
        match served.result() {
            Ok(outcome) => println!(" ({outcome:?})"),
            Err(error) => println!(" ({error})"),
        }
    }
    Ok(())
}
