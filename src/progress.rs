//! Shows how far a run is: a bar at a terminal, or lines. What works only counts; a thread of its own looks and draws.

use blkpatch::units::human;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Not at all.
    Nothing,
    /// A bar, with colour or without.
    Bar {
        /// Whether there is colour.
        colour: bool,
    },
    /// A line now and then.
    Lines,
    /// A JSON object a line.
    Json,
}

/// What takes less time than this needs no bar.
const PATIENCE: Duration = Duration::from_secs(1);
/// Stack of the thread that draws.
const STACK: usize = 256 << 10;
/// `Shared::durable` where nothing is written.
const NOT_WRITING: u64 = u64::MAX;

impl Style {
    /// How often it is drawn.
    fn interval(self) -> Duration {
        match self {
            Self::Bar { .. } | Self::Nothing => Duration::from_millis(200),
            Self::Json => Duration::from_secs(1),
            Self::Lines => Duration::from_secs(10),
        }
    }
}

/// A run's progress.
#[derive(Debug)]
pub struct Progress {
    shared: Arc<Shared>,
    drawer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    style: Style,
    begun: Instant,
    /// Bytes of the phase that are done, and those known to be durable.
    done: AtomicU64,
    durable: AtomicU64,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    phase: Option<Phase>,
    over: bool,
    bar: Option<ProgressBar>,
}

/// A phase; `number` tells it from the others.
#[derive(Clone, Copy, Debug)]
struct Phase {
    number: u64,
    name: &'static str,
    total: u64,
    begun: Instant,
}

impl Progress {
    /// Nothing is shown before the first phase.
    pub fn new(style: Style) -> Self {
        let shared = Shared {
            style,
            begun: Instant::now(),
            done: AtomicU64::new(0),
            durable: AtomicU64::new(NOT_WRITING),
            state: Mutex::default(),
            wake: Condvar::new(),
        };
        Self { shared: Arc::new(shared), drawer: Mutex::default() }
    }

    /// A phase begins.
    pub fn phase(&self, name: &'static str, total: u64) {
        let shared = &self.shared;
        if shared.style == Style::Nothing {
            return;
        }
        let mut state = shared.state();
        let number = state.phase.map_or(0, |phase| phase.number + 1);
        let phase = Phase { number, name, total, begun: Instant::now() };
        shared.done.store(0, Ordering::Relaxed);
        shared.durable.store(NOT_WRITING, Ordering::Relaxed);
        state.phase = Some(phase);
        if shared.style == Style::Json {
            Look::of(shared, &phase, 0).print();
        }
        drop(state);
        let mut drawer = self.drawer.lock().unwrap_or_else(PoisonError::into_inner);
        if drawer.is_none() {
            let shared = Arc::clone(shared);
            // Where no thread can be had, nothing is shown.
            *drawer = std::thread::Builder::new().stack_size(STACK).spawn(move || shared.draw_to_the_end()).ok();
        }
    }

    /// More bytes are done.
    pub fn advance(&self, bytes: u64) {
        self.shared.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// All that is done is durable.
    pub fn durable(&self) {
        self.shared.durable.store(self.shared.done.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Does something, such as writing a line, while no bar is in the way.
    pub fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        let state = self.shared.state(); // nobody draws meanwhile
        match &state.bar {
            Some(bar) => bar.suspend(work),
            None => work(),
        }
    }

    /// Takes the bar away, if that can be done at once: the program is about to be ended, whatever its threads do.
    pub fn abandon(&self) {
        if let Ok(mut state) = self.shared.state.try_lock() {
            state.over = true;
            if let Some(bar) = state.bar.take() {
                bar.finish_and_clear();
            }
        }
    }

    /// Takes the bar away. Also where another thread draws, nothing appears after this.
    pub fn finish(&self) {
        let mut state = self.shared.state();
        state.over = true;
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
        drop(state);
        self.shared.wake.notify_all();
        let drawer = self.drawer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(drawer) = drawer {
            let _ = drawer.join();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw_to_the_end(&self) {
        let mut speed = Speed::default();
        let mut state = self.state();
        let mut due = Instant::now() + self.style.interval();
        while !state.over {
            let now = Instant::now();
            if now < due {
                let waited = self.wake.wait_timeout(state, due - now);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            due = now + self.style.interval();
            if let Some(phase) = state.phase
                && self.begun.elapsed() >= PATIENCE
            {
                let rate = speed.rate(phase, self.done.load(Ordering::Relaxed), now);
                self.draw(&mut state, &Look::of(self, &phase, rate));
            }
        }
    }

    fn draw(&self, state: &mut State, look: &Look) {
        match self.style {
            Style::Nothing => {}
            Style::Json => look.print(),
            Style::Lines => crate::report::complain(&format!("{}: {}", look.phase, look.said())),
            Style::Bar { colour } => {
                let bar = state
                    .bar
                    .get_or_insert_with(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)));
                bar.set_style(look.style(colour));
                // A bar is not full before what it stands for is durable.
                let full = look.total_bytes.map(|total| (total, look.durable_bytes.unwrap_or(u64::MAX)));
                if let Some((total, durable)) = full {
                    let shown =
                        if durable < total { look.done_bytes.min(total - total / 100) } else { look.done_bytes };
                    bar.set_length(total);
                    bar.set_position(shown.min(total));
                }
                bar.set_prefix(look.phase);
                bar.set_message(look.said());
                bar.tick();
            }
        }
    }
}

/// What a phase looks like; as JSON it is described by spec/cli.schema.json.
#[derive(Debug, Serialize)]
struct Look {
    #[serde(rename = "type")]
    kind: &'static str,
    phase: &'static str,
    done_bytes: u64,
    total_bytes: Option<u64>,
    /// Where the phase writes: what is known to be durable.
    durable_bytes: Option<u64>,
    bytes_per_second: u64,
    seconds_left: Option<u64>,
    seconds: u64,
}

impl Look {
    fn of(shared: &Shared, phase: &Phase, rate: u64) -> Self {
        let done = shared.done.load(Ordering::Relaxed);
        // A restart that does again what another run has done may do more than was thought.
        let total = (phase.total > 0).then(|| phase.total.max(done));
        let durable = Some(shared.durable.load(Ordering::Relaxed)).filter(|durable| *durable != NOT_WRITING);
        Self {
            kind: "progress",
            phase: phase.name,
            done_bytes: done,
            total_bytes: total,
            durable_bytes: durable.map(|durable| durable.min(done)),
            bytes_per_second: rate,
            seconds_left: total.and_then(|total| (total - done).checked_div(rate)),
            seconds: phase.begun.elapsed().as_secs(),
        }
    }

    fn print(&self) {
        if let Ok(text) = serde_json::to_string(self) {
            let _ = writeln!(std::io::stderr(), "{text}"); // nobody listens: no reason to stop
        }
    }

    /// In words.
    fn said(&self) -> String {
        let Some(total) = self.total_bytes else {
            let done = if self.done_bytes > 0 { format!("{}, ", human(self.done_bytes)) } else { String::new() };
            return format!("{done}{}", clock(self.seconds));
        };
        let percent = u128::from(self.done_bytes) * 100 / u128::from(total.max(1));
        let mut text = format!("{percent:3}% of {}", human(total));
        if let Some(durable) = self.durable_bytes.filter(|durable| *durable < self.done_bytes) {
            text += &format!(" written, {} durable", human(durable));
        }
        if self.done_bytes == total && self.durable_bytes.is_some_and(|durable| durable < total) {
            return text + ", syncing";
        }
        if self.bytes_per_second > 0 {
            text += &format!(", {}/s", human(self.bytes_per_second));
        }
        if let Some(left) = self.seconds_left {
            text += &format!(", {} left", clock(left));
        }
        text
    }

    /// The bar's style. The templates are constants: that they are right, a test tells.
    fn style(&self, colour: bool) -> ProgressStyle {
        let template = match (self.total_bytes, colour) {
            (None, _) => UNKNOWN,
            (Some(_), true) => COLOURED,
            (Some(_), false) => PLAIN,
        };
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
    }
}

const UNKNOWN: &str = "{prefix} {spinner} {msg}";
const COLOURED: &str = "{prefix} [{wide_bar:.cyan}] {msg}";
const PLAIN: &str = "{prefix} [{wide_bar}] {msg}";

/// `0:07`, `12:34`, `1:02:03`.
fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// Bytes per second over the last few seconds.
#[derive(Debug, Default)]
struct Speed {
    phase: u64,
    seen: VecDeque<(Instant, u64)>,
}

/// What is older does not count.
const WINDOW: Duration = Duration::from_secs(10);

impl Speed {
    fn rate(&mut self, phase: Phase, done: u64, now: Instant) -> u64 {
        if self.phase != phase.number || self.seen.is_empty() {
            self.phase = phase.number;
            self.seen = VecDeque::from([(phase.begun, 0)]);
        }
        while self.seen.len() > 1 && self.seen.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.seen.pop_front();
        }
        self.seen.push_back((now, done));
        let Some((then, before)) = self.seen.front() else { return 0 };
        let millis = now.duration_since(*then).as_millis().max(1);
        u64::try_from(u128::from(done.saturating_sub(*before)) * 1000 / millis).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(done: u64, total: u64, durable: Option<u64>, rate: u64) -> Look {
        let progress = Progress::new(Style::Nothing);
        progress.advance(done);
        progress.shared.durable.store(durable.unwrap_or(NOT_WRITING), Ordering::Relaxed);
        let phase = Phase { number: 0, name: "writing", total, begun: Instant::now() };
        Look::of(&progress.shared, &phase, rate)
    }

    #[test]
    fn it_says_bytes_rate_and_time_left() {
        assert_eq!(look(1 << 30, 4 << 30, None, 32 << 20).said(), " 25% of 4.0 GiB, 32.0 MiB/s, 1:36 left");
        assert_eq!(look(0, 4 << 30, None, 0).said(), "  0% of 4.0 GiB");
        assert_eq!(look(5 << 20, 0, None, 1).said(), "5.0 MiB, 0:00");
        assert_eq!((clock(59), clock(60 * 60 + 62)), ("0:59".into(), "1:01:02".into()));
    }

    #[test]
    fn what_is_not_durable_is_said() {
        let said = look(3 << 20, 4 << 20, Some(1 << 20), 1 << 20).said();
        assert_eq!(said, " 75% of 4.0 MiB written, 1.0 MiB durable, 1.0 MiB/s, 0:01 left");
        let said = look(4 << 20, 4 << 20, Some(1 << 20), 1 << 20).said();
        assert_eq!(said, "100% of 4.0 MiB written, 1.0 MiB durable, syncing");
        assert!(!look(4 << 20, 4 << 20, Some(4 << 20), 1 << 20).said().contains("durable"));
    }

    #[test]
    fn more_than_was_thought_is_no_error() {
        let look = look(9, 5, Some(100), 3);
        assert_eq!((look.total_bytes, look.durable_bytes, look.seconds_left), (Some(9), Some(9), Some(0)));
    }

    #[test]
    fn the_speed_is_that_of_late() {
        let (begun, mut speed) = (Instant::now(), Speed::default());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let phase = Phase { number: 1, name: "x", total: 100, begun };
        assert_eq!(speed.rate(phase, 1000, at(1)), 1000);
        for second in 2..30 {
            speed.rate(phase, 1000 + 10 * second, at(second));
        }
        assert_eq!(speed.rate(phase, 1300, at(30)), 10);
        let next = Phase { number: 2, begun: at(30), ..phase };
        assert_eq!(speed.rate(next, 50, at(31)), 50, "another phase, another speed");
    }

    #[test]
    fn the_templates_are_sound() {
        for template in [UNKNOWN, COLOURED, PLAIN] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
