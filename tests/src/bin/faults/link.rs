//! A way to a server that can be cut: TCP connections are passed on, closed, or left without an answer.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;

/// How long a pump looks at one thing only.
const LOOK: Duration = Duration::from_millis(20);

/// What becomes of connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Way {
    /// They are passed on.
    Open,
    /// New ones and those that exist are closed.
    Cut,
    /// They stay, and nothing comes through.
    Silent,
}

pub struct Link {
    pub address: SocketAddr,
    way: Arc<AtomicU8>,
}

impl Link {
    pub fn to(server: &str) -> Result<Link> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let link = Link { address: listener.local_addr()?, way: Arc::new(AtomicU8::new(Way::Open as u8)) };
        let (server, way) = (server.to_owned(), Arc::clone(&link.way));
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if way.load(Ordering::SeqCst) == Way::Cut as u8 {
                    continue;
                }
                if let Ok(far) = TcpStream::connect(&server) {
                    join(near, far, &way);
                }
            }
        });
        Ok(link)
    }

    pub fn set(&self, way: Way) {
        self.way.store(way as u8, Ordering::SeqCst);
    }
}

/// Passes bytes in both directions until either side ends.
fn join(near: TcpStream, far: TcpStream, way: &Arc<AtomicU8>) {
    let (Ok(near_again), Ok(far_again)) = (near.try_clone(), far.try_clone()) else { return };
    for (mut from, mut to) in [(near, far), (far_again, near_again)] {
        let way = Arc::clone(way);
        thread::spawn(move || {
            // An error ends the connection, as it would without this.
            let _ = pump(&mut from, &mut to, &way);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}

fn pump(from: &mut TcpStream, to: &mut TcpStream, way: &AtomicU8) -> std::io::Result<()> {
    from.set_read_timeout(Some(LOOK))?;
    let mut buffer = vec![0; 64 << 10];
    let is = |wanted: Way| way.load(Ordering::SeqCst) == wanted as u8;
    loop {
        if is(Way::Cut) {
            return Ok(());
        }
        if is(Way::Silent) {
            thread::sleep(LOOK);
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                // What arrived while the way was being cut stays here.
                while is(Way::Silent) {
                    thread::sleep(LOOK);
                }
                to.write_all(&buffer[..read])?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
}
