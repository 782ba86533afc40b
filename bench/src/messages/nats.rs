//! NATS request-reply: two processes and a real `nats-server`.

use async_nats::Subscriber;
use bytes::Bytes;
use futures::StreamExt;
use tokio::runtime::Runtime;

use super::{Answers, Contender, Flavour, Load, check};
use crate::Result;
use crate::measure::{Round, closed_loop};
use crate::process::announce_and_wait;

const SUBJECT: &str = "bench";

pub(super) fn serve(url: &str) -> Result<()> {
    let runtime = Flavour::MultiThread.runtime()?;
    let (client, requests) = runtime.block_on(async {
        let client = async_nats::connect(url).await?;
        let requests = client.subscribe(SUBJECT).await?;
        // After this, the server has the subscription.
        client.flush().await?;
        Ok::<_, crate::Error>((client, requests))
    })?;
    runtime.spawn(answer(client, requests));
    announce_and_wait(url)
}

async fn answer(client: async_nats::Client, mut requests: Subscriber) {
    let answers = Answers::new();
    while let Some(request) = requests.next().await {
        let Some(reply) = request.reply else { continue };
        let answer = match answers.answer(&request.payload) {
            echo if echo.as_ptr() == request.payload.as_ptr() => request.payload.clone(),
            value => Bytes::copy_from_slice(value),
        };
        if client.publish(reply, answer).await.is_err() {
            return;
        }
    }
}

pub(super) struct Client {
    runtime: Runtime,
    nats: async_nats::Client,
}

impl Client {
    pub(super) fn connect(url: &str) -> Result<Self> {
        let runtime = Flavour::MultiThread.runtime()?;
        let nats = runtime.block_on(async_nats::connect(url))?;
        Ok(Self { runtime, nats })
    }
}

impl Contender for Client {
    fn round(&mut self, load: &Load) -> Result<Round> {
        let (nats, operation) = (self.nats.clone(), load.operation);
        self.runtime.block_on(closed_loop(load.in_flight, load.window, move |number| {
            let nats = nats.clone();
            async move {
                let answer = nats.request(SUBJECT, operation.request(number)).await?;
                check(&answer.payload)
            }
        }))
    }
}
