//! Moving one object in parts: each has its own deadline and its own repetitions, so that a large object on a slow line does
//! not start over for the last of its bytes.

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{
    GetOptions, GetResult, MultipartUpload, ObjectMeta, ObjectStore as _, ObjectStoreExt as _,
};
use tokio::time::timeout;

use super::error::MirrorError;
use super::objects::length;
use super::store::Access;

/// Greatest part, in bytes. S3 takes at least 5 MiB and at most ten thousand parts, so objects may have 80 GB; a line of 1 MB/s
/// carries a part in eight seconds.
pub const PART_BYTES: u64 = 8 * 1024 * 1024;
/// The same as a length in memory.
const PART_LENGTH: usize = 8 * 1024 * 1024;
/// Parts of one object under way at once. Two fill the time in which the store works on one of them.
const PARTS_PARALLEL: usize = 2;

const _: () = assert!(PART_LENGTH as u64 == PART_BYTES);

impl Access<'_> {
    /// Writes an object in parts; it is there once all are. Another's object of this name is written over, which is harmless
    /// since it has the same bytes or wrong ones.
    pub(super) async fn put_parts(&self, bytes: &Bytes) -> Result<(), MirrorError> {
        let mut upload = self.call(0, self.inner.store.put_multipart(&self.path)).await?;
        let mut sent = self.send_parts(upload.as_mut(), bytes).await;
        if sent.is_ok() {
            sent = self.call(length(bytes), upload.complete()).await.map(drop);
        }
        if sent.is_err() {
            // The first error is the one to report. Parts that stay are not an object.
            let _ = self.call(0, upload.abort()).await;
        }
        sent
    }

    async fn send_parts(&self, upload: &mut dyn MultipartUpload, bytes: &Bytes) -> Result<(), MirrorError> {
        let starts = (0..bytes.len()).step_by(PART_LENGTH);
        let pieces = starts.map(|start| bytes.slice(start..bytes.len().min(start + PART_LENGTH)));
        // Making a request numbers the part; nothing is sent until it is polled.
        let requests: Vec<_> = pieces.map(|piece| (length(&piece), upload.put_part(piece.into()))).collect();
        let sending = requests.into_iter().map(|(bytes, request)| async move {
            self.inner.rate.wait_for(bytes).await;
            self.call(bytes, request).await
        });
        futures::stream::iter(sending).buffer_unordered(PARTS_PARALLEL).try_collect().await
    }

    /// Reads an object of a known size into memory of this size, part by part and each into its place.
    pub(super) async fn read_parts(&self, meta: &ObjectMeta, size: usize) -> Result<Bytes, MirrorError> {
        let mut rest = BytesMut::zeroed(size);
        let mut parts = Vec::with_capacity(size.div_ceil(PART_LENGTH));
        let mut start = 0;
        while !rest.is_empty() {
            let part = rest.split_to(rest.len().min(PART_LENGTH));
            let end = start + length_of(&part);
            parts.push(self.read_part(meta, start, part));
            start = end;
        }
        let mut whole = BytesMut::new();
        let mut reading = futures::stream::iter(parts).buffered(PARTS_PARALLEL);
        while let Some(part) = reading.try_next().await? {
            // Neighbours in one allocation are joined without copying.
            whole.unsplit(part);
        }
        Ok(whole.freeze())
    }

    async fn read_part(
        &self,
        meta: &ObjectMeta,
        start: u64,
        mut part: BytesMut,
    ) -> Result<BytesMut, MirrorError> {
        let bytes = length_of(&part);
        let options = GetOptions {
            range: Some((start..start + bytes).into()),
            // An object that was replaced meanwhile is not to be glued to the old one.
            if_match: meta.e_tag.clone(),
            ..GetOptions::default()
        };
        let limit = self.limit(bytes);
        let read = async {
            let answer = self.call(bytes, self.inner.store.get_opts(&self.path, options)).await?;
            self.fill(answer, &mut part).await
        };
        match timeout(limit, read).await {
            Ok(filled) => filled?,
            Err(_) => return Err(self.unavailable(format!("no part of {bytes} bytes within {limit:?}"))),
        }
        Ok(part)
    }

    /// Writes what comes into its place; less and more than fits are errors.
    async fn fill(&self, answer: GetResult, part: &mut BytesMut) -> Result<(), MirrorError> {
        let mut stream = answer.into_stream();
        let mut filled = 0;
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| self.failed(&error))?;
            let end = filled + piece.len();
            let Some(place) = part.get_mut(filled..end) else {
                let expected = part.len();
                return Err(self.unavailable(format!("expected {expected} bytes, got at least {end}")));
            };
            place.copy_from_slice(&piece);
            filled = end;
        }
        if filled < part.len() {
            let expected = part.len();
            return Err(self.unavailable(format!("expected {expected} bytes, got {filled}")));
        }
        Ok(())
    }
}

fn length_of(part: &BytesMut) -> u64 {
    u64::try_from(part.len()).unwrap_or(u64::MAX)
}
