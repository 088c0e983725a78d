//! Downloads from a server on the loopback that does what a test tells it.

use super::server::{Answer, Server};
use super::*;

fn content() -> Vec<u8> {
    (0..200_000u32).flat_map(u32::to_le_bytes).collect()
}

fn expected(content: &[u8]) -> Expected {
    Expected {
        sha256: Sha256::digest(content).into(),
        size: content.len() as u64,
    }
}

fn downloads() -> (tempfile::TempDir, Downloads) {
    let directory = tempfile::tempdir().unwrap();
    let mut downloads = Downloads::new(directory.path().to_owned()).unwrap();
    downloads.patience.backoff = Duration::from_millis(1);
    (directory, downloads)
}

async fn fetch(
    server: &Server,
    downloads: &Downloads,
    content: &[u8],
) -> Result<PathBuf, DownloadError> {
    let fetched = downloads
        .file(&server.url, &expected(content), "test", &Reporter::silent())
        .await;
    Ok(fetched?.path().to_owned())
}

fn names(directory: &tempfile::TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(directory.path()).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test]
async fn a_file_is_published_under_its_hash_and_not_fetched_twice() {
    let content = content();
    let server = Server::start(content.clone(), vec![Answer::Whole]).await;
    let (directory, downloads) = downloads();
    let path = fetch(&server, &downloads, &content).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
    assert_eq!(fetch(&server, &downloads, &content).await.unwrap(), path);
    assert_eq!(server.ranges().len(), 1);
    assert_eq!(names(&directory), [show_sha256(&expected(&content).sha256)]);
}

#[tokio::test]
async fn a_damaged_cache_is_fetched_again() {
    let content = content();
    let server = Server::start(content.clone(), vec![Answer::Whole]).await;
    let (directory, downloads) = downloads();
    let path = directory
        .path()
        .join(show_sha256(&expected(&content).sha256));
    std::fs::write(&path, "rubbish").unwrap();
    fetch(&server, &downloads, &content).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let content = content();
    let server = Server::start(content.clone(), vec![Answer::Cut(100_000), Answer::Range]).await;
    let (_directory, downloads) = downloads();
    let path = fetch(&server, &downloads, &content).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
    assert_eq!(server.ranges(), [None, Some(100_000)]);
}

#[tokio::test]
async fn what_an_earlier_process_fetched_is_used() {
    let content = content();
    let server = Server::start(content.clone(), vec![Answer::Range]).await;
    let (directory, downloads) = downloads();
    let part = format!("{}.part", show_sha256(&expected(&content).sha256));
    std::fs::write(directory.path().join(part), &content[..5000]).unwrap();
    let path = fetch(&server, &downloads, &content).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
    assert_eq!(server.ranges(), [Some(5000)]);
    assert_eq!(names(&directory).len(), 1);
}

#[tokio::test]
async fn a_part_of_something_else_is_thrown_away() {
    let content = content();
    let server = Server::start(content.clone(), vec![Answer::Range, Answer::Whole]).await;
    let (directory, downloads) = downloads();
    let part = format!("{}.part", show_sha256(&expected(&content).sha256));
    std::fs::write(directory.path().join(part), vec![b'x'; 5000]).unwrap();
    let path = fetch(&server, &downloads, &content).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
    assert_eq!(server.ranges(), [Some(5000), None]);
}

#[tokio::test]
async fn servers_that_know_no_ranges_or_the_wrong_ones_are_coped_with() {
    for answers in [
        vec![Answer::Whole],
        vec![Answer::WrongRange, Answer::Whole],
        vec![Answer::Status("416 Range Not Satisfiable"), Answer::Whole],
    ] {
        let content = content();
        let server = Server::start(content.clone(), answers.clone()).await;
        let (directory, downloads) = downloads();
        let part = format!("{}.part", show_sha256(&expected(&content).sha256));
        std::fs::write(directory.path().join(part), &content[..5000]).unwrap();
        let path = fetch(&server, &downloads, &content).await.unwrap();
        assert!(std::fs::read(&path).unwrap() == content, "{answers:?}");
    }
}

#[tokio::test]
async fn a_wrong_hash_is_refused_and_leaves_nothing() {
    let content = content();
    let mut other = content.clone();
    other[7] ^= 1;
    let server = Server::start(other, vec![Answer::Whole]).await;
    let (directory, downloads) = downloads();
    let error = fetch(&server, &downloads, &content).await.unwrap_err();
    assert!(
        matches!(error, DownloadError::WrongHash { .. }),
        "{error:?}"
    );
    assert!(names(&directory).is_empty());
}

#[tokio::test]
async fn a_file_that_is_too_long_is_refused_and_leaves_nothing() {
    let content = content();
    let longer = [&content[..], b"more"].concat();
    let server = Server::start(longer, vec![Answer::Whole]).await;
    let (directory, downloads) = downloads();
    let error = fetch(&server, &downloads, &content).await.unwrap_err();
    assert!(matches!(error, DownloadError::TooLong { .. }), "{error:?}");
    assert!(names(&directory).is_empty());
}

#[tokio::test]
async fn a_file_that_is_not_there_is_asked_for_once() {
    let content = content();
    let server = Server::start(content.clone(), vec![Answer::Status("404 Not Found")]).await;
    let (directory, downloads) = downloads();
    let error = fetch(&server, &downloads, &content).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "could not download {}: the server answers 404 Not Found",
            server.url
        )
    );
    assert!(names(&directory).is_empty());
}

#[tokio::test]
async fn a_server_that_always_fails_is_given_up() {
    let content = content();
    let answers = vec![Answer::Status("503 Service Unavailable"); 10];
    let server = Server::start(content.clone(), answers).await;
    let (_directory, downloads) = downloads();
    let error = fetch(&server, &downloads, &content).await.unwrap_err();
    assert!(matches!(error, DownloadError::Status { .. }), "{error:?}");
    assert_eq!(server.ranges().len(), ATTEMPTS as usize);
}

/// A server that is too slow for these downloads, which give it 20 ms for 64 KiB.
async fn dribbling(content: &[u8]) -> (Server, tempfile::TempDir, Downloads) {
    let answers = vec![Answer::Dribble(Duration::from_millis(5)); 20];
    let server = Server::start(content.to_vec(), answers).await;
    let (directory, mut downloads) = downloads();
    downloads.patience.pace = Duration::from_millis(20);
    (server, directory, downloads)
}

#[tokio::test]
async fn a_server_that_dribbles_is_given_up() {
    let content = content();
    let (server, _directory, downloads) = dribbling(&content).await;
    let error = fetch(&server, &downloads, &content).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{} sends less than 64 KiB in 20ms", server.url)
    );
    assert_eq!(server.ranges().len(), ATTEMPTS as usize);
    let (server, _directory, downloads) = dribbling(&content).await;
    let error = downloads.text(&server.url, 1 << 20).await.unwrap_err();
    assert!(matches!(error, DownloadError::Slow { .. }), "{error:?}");
    assert_eq!(server.ranges().len(), ATTEMPTS as usize);
}

#[tokio::test]
async fn a_server_that_breaks_off_after_a_few_bytes_each_time_is_given_up() {
    let content = content();
    let few = vec![
        Answer::Cut(1),
        Answer::Bite(1),
        Answer::Bite(1),
        Answer::Bite(1),
    ];
    let server = Server::start(content.clone(), few).await;
    let (_directory, downloads) = downloads();
    let error = fetch(&server, &downloads, &content).await.unwrap_err();
    assert!(error.is_passing(), "{error:?}");
    assert_eq!(server.ranges(), [None, Some(1), Some(2), Some(3)]);
    // One that gets somewhere each time is not.
    let many = (0..20).map(|_| Answer::Bite(100_000));
    let answers = [Answer::Cut(100_000)].into_iter().chain(many);
    let server = Server::start(content.clone(), answers.collect()).await;
    let (_directory, downloads) = self::downloads();
    fetch(&server, &downloads, &content).await.unwrap();
    assert_eq!(server.ranges().len(), 8);
}

#[tokio::test]
async fn a_text_is_read_up_to_its_limit_and_only_if_it_is_text() {
    let (_directory, downloads) = downloads();
    let server = Server::start(
        b"hello".to_vec(),
        vec![Answer::Cut(2), Answer::Whole, Answer::Whole],
    )
    .await;
    assert_eq!(downloads.text(&server.url, 5).await.unwrap(), "hello");
    let error = downloads.text(&server.url, 4).await.unwrap_err();
    assert!(matches!(error, DownloadError::TooLong { .. }), "{error:?}");
    let server = Server::start(vec![0xff], vec![Answer::Whole]).await;
    let error = downloads.text(&server.url, 5).await.unwrap_err();
    assert!(matches!(error, DownloadError::NotText { .. }), "{error:?}");
}

#[tokio::test]
async fn a_length_is_told_before_anything_is_fetched() {
    let (directory, downloads) = downloads();
    let answers = vec![
        Answer::Status("503 Service Unavailable"),
        Answer::Whole,
        Answer::Whole,
        Answer::Status("404 Not Found"),
    ];
    let server = Server::start(b"hello".to_vec(), answers).await;
    assert_eq!(downloads.length(&server.url, 5).await.unwrap(), 5);
    let error = downloads.length(&server.url, 4).await.unwrap_err();
    assert!(matches!(error, DownloadError::TooLong { .. }), "{error:?}");
    let error = downloads.length(&server.url, 5).await.unwrap_err();
    assert!(matches!(error, DownloadError::Status { .. }), "{error:?}");
    assert!(names(&directory).is_empty());
}

#[tokio::test]
async fn two_that_fetch_the_same_do_not_disturb_each_other() {
    let content = content();
    let server = Server::start(content.clone(), vec![Answer::Whole, Answer::Whole]).await;
    let (_directory, downloads) = downloads();
    let (first, second) = tokio::join!(
        fetch(&server, &downloads, &content),
        fetch(&server, &downloads, &content)
    );
    assert_eq!(first.unwrap(), second.unwrap());
}
