package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/internal/netns"
	"berth/internal/oci"
)

// A bare makes containers with the monitor and the runtime alone.
type bare struct {
	host    *netns.NS
	spec    specs.Spec
	runtime oci.Runtime
	monitor oci.Monitor
}

// newBare takes the config.json of a container that berth runs, which stays for
// the files that are mounted into it.
func newBare(b *bed, root string, runtime oci.Runtime) *bare {
	b.start("model", root, 0)
	w := &bare{host: b.host, runtime: runtime, monitor: must(oci.FindMonitor())}
	for _, file := range must(filepath.Glob(b.dir + "/run/containers/*/config.json")) {
		var spec specs.Spec
		check(json.Unmarshal(must(os.ReadFile(file)), &spec))
		for _, ns := range spec.Linux.Namespaces {
			if ns.Type == specs.NetworkNamespace && ns.Path == "" {
				w.spec = spec // not the standing one's, whose namespace was there before
			}
		}
	}
	w.spec.Process.Args = []string{"true"}
	check(os.MkdirAll(runtime.Root, 0o700))
	check(os.MkdirAll("/run/bare/exits", 0o700))
	return w
}

// run makes a container, starts it, waits for its end and takes it away.
func (w *bare) run(i int) {
	id := fmt.Sprintf("bare-%d-%d", os.Getpid(), i)
	dir := filepath.Join("/run/bare", id)
	check(os.Mkdir(dir, 0o700))
	w.spec.Linux.CgroupsPath = "/berth/" + id
	check(os.WriteFile(dir+"/config.json", must(json.Marshal(w.spec)), 0o600))
	var pid, monitor int
	check(w.host.Do(func() (err error) {
		pid, monitor, err = w.monitor.Create(ctx, oci.Watch{ID: id, Bundle: dir, Runtime: w.runtime, Log: dir + "/log", ExitDir: "/run/bare/exits"})
		return err
	}))
	first, watch := oci.Identify(pid), oci.Identify(monitor)
	check(w.runtime.Start(ctx, id))
	must(oci.Await(ctx, first, -1))
	for { // the status comes within a millisecond, before the monitor's end
		if _, err := oci.ExitCode("/run/bare/exits", id); err == nil {
			break
		}
		must(oci.Await(ctx, watch, 250*time.Microsecond))
	}
	check(w.runtime.Delete(ctx, id))
	check(os.RemoveAll(dir))
}
