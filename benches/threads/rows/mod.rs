//! What is done with the pools, and the goals.

mod fork_join;
mod map;
mod producers;
mod resources;
mod submit;

use cf_benches::Workload;

/// In the order of their names.
pub(crate) fn all() -> Vec<Workload> {
    let parts = [
        submit::workloads(),
        fork_join::workloads(),
        map::workloads(),
        producers::workloads(),
        resources::workloads(),
    ];
    parts.into_iter().flatten().collect()
}

/// A contender for each adapter.
macro_rules! peers {
    ($workload:expr, $measure:ident: $($peer:ident),+ $(,)?) => {
        $workload$(.peer(crate::rows::name(stringify!($peer)), |setting| $measure::<crate::peers::$peer>(setting)))+
    };
}
pub(crate) use peers;

/// How a peer is called in the table; the names stand here only.
pub(crate) fn name(adapter: &'static str) -> &'static str {
    match adapter {
        "Rayon" => "rayon",
        "RayonChannel" => "rayon+crossbeam",
        "Threadpool" => "threadpool",
        "Hyper" => "hyper-thread-pool",
        "ExecutorsChannel" => "executors-channel",
        "ExecutorsStealing" => "executors-stealing",
        "TokioSpawn" => "tokio",
        "TokioBlocking" => "tokio-blocking",
        "SmolBlocking" => "smol-blocking",
        "Micropool" => "micropool",
        "RustyPool" => "rusty_pool",
        "StdThreads" => "std-threads",
        other => other,
    }
}

/// The row with CPython's executor.
pub(crate) fn with_python(workload: Workload, row: &'static str) -> Workload {
    workload.peer("python", move |setting| {
        let size = setting.of("full", "quick");
        cf_benches::python::run("threads.py", &[row, &setting.workers.to_string(), size])
    })
}
