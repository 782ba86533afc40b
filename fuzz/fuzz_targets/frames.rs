//! Bytes from a peer, cut anywhere, are frames or an error, the same however they are cut; the reader never
//! holds more than one frame and one read; and what it decodes encodes to something that it decodes again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peerscope::network::protocol::{FrameError, FrameReader, RequestFrame, ResponseFrame, encode};

const MAX_FRAME: usize = 4096;

fn read<F: prost::Message + Default>(mut bytes: &[u8], step: usize, max_frame: usize) -> (Vec<F>, Option<FrameError>) {
    let mut reader = FrameReader::new(max_frame);
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let room = reader.room();
        assert!(!room.is_empty());
        assert!(room.len() <= max_frame + 10 + 64 * 1024);
        let n = step.min(bytes.len()).min(room.len());
        room[..n].copy_from_slice(&bytes[..n]);
        reader.filled(n);
        bytes = &bytes[n..];
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        reader.release();
    }
    (frames, None)
}

fn check<F: prost::Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8], step: usize) {
    let (frames, error) = read::<F>(bytes, step, MAX_FRAME);
    let whole = read::<F>(bytes, usize::MAX, MAX_FRAME);
    assert_eq!((&frames, &error), (&whole.0, &whole.1));
    for frame in frames {
        let mut wire = Vec::new();
        encode(&frame, &mut wire);
        let (again, error) = read::<F>(&wire, step, 2 * MAX_FRAME);
        // A little longer at most: a negative error code may come in five bytes and is written in ten.
        assert_eq!((again, error), (vec![frame], None));
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&step, bytes)) = data.split_first() else { return };
    let step = usize::from(step).max(1);
    check::<RequestFrame>(bytes, step);
    check::<ResponseFrame>(bytes, step);
});
