//! A Redis of a test's own, for tests of what is done there.

use std::{
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, Stdio},
    thread::yield_now,
};

use redis::{Client, Connection, ConnectionLike};

/// A Redis that ends with the test.
#[derive(Debug)]
pub(crate) struct TestRedis {
    server: Child,
    port: u16,
}

impl TestRedis {
    /// `None` where none is installed and no CI insists.
    #[expect(clippy::disallowed_methods, reason = "asks whether this is CI")]
    pub(crate) fn start() -> Option<Self> {
        // Another process may take the port in between.
        for _ in 0..10 {
            let port = free_port();
            let mut command = Command::new("redis-server");
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
            command.args(["--save", "", "--appendonly", "no"]);
            let started = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            let Ok(server) = started else {
                assert!(std::env::var_os("CI").is_none(), "redis-server is missing");
                return None;
            };
            let mut redis = Self { server, port };
            if redis.is_served() {
                return Some(redis);
            }
        }
        panic!("no redis-server would start");
    }

    /// Whether it answers, rather than end.
    fn is_served(&mut self) -> bool {
        while self.server.try_wait().unwrap().is_none() {
            if self.try_connect().is_some() {
                return true;
            }
            yield_now();
        }
        false
    }

    fn try_connect(&self) -> Option<Connection> {
        let client = Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let mut connection = client.get_connection().ok()?;
        connection.check_connection().then_some(connection)
    }

    pub(crate) fn connect(&self) -> Connection {
        self.try_connect().unwrap()
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
