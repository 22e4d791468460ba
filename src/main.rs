//! blkpatch
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let t = std::time::Instant::now();
    let r = blkpatch::diff::diff(a[1].as_ref(), a[2].as_ref(), a[3].as_ref(), &Default::default(), &P(t)).unwrap();
    println!("{:?} {:?}", r, t.elapsed());
}
struct P(std::time::Instant);
impl blkpatch::monitor::Monitor for P {
    fn phase(&self, name: &'static str, total: u64) {
        eprintln!("{:?} {name} {total}", self.0.elapsed());
    }
}
