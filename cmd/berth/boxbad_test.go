package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestContainersThatCannotStart runs what cannot: one line says why, the exit
// status is docker's, and nothing is left but what can be started again.
func TestContainersThatCannotStart(t *testing.T) {
	t.Parallel()
	d := newDock(t)
	d.must(t, "berth sandbox create held && berth network connect -p 7001:80 front held && berth create --name taken --network none --rootfs $R true")
	before := d.must(t, "berth sandbox ls -q; berth port")
	const run = "berth run --network front --ip 10.1.0.9 "
	for _, c := range []struct {
		name, script string
		status       int
		says         string
	}{
		{"no root", run + "--rootfs /none true", 125, "/none"},
		{"root is a file", run + "--rootfs $R/bin/busybox true", 125, "is no directory"},
		{"empty root", "mkdir -p /run/empty && " + run + "--rootfs /run/empty true", 127, "true"},
		{"no command", run + "--rootfs $R", 125, "command"},
		{"command not found", run + "--rootfs $R nothere", 127, "nothere"},
		{"path not found", run + "--rootfs $R /bin/nothere", 127, "/bin/nothere"},
		{"not executable", run + "--rootfs $R /etc/data", 126, "/etc/data"},
		{"a directory", run + "--rootfs $R /etc", 126, "/etc"},
		{"command not found, --rm", run + "--rm --rootfs $R nothere", 127, "nothere"},
		{"command not found, -d", run + "-d --rootfs $R nothere", 127, "nothere"},
		{"port published", run + "-p 7001:80 --rootfs $R true", 125, "published by sandbox held"},
		{"port listened at", "nc -l 127.0.0.1 7002 >/dev/null 2>&1 </dev/null & until ss -ltn | grep -q :7002; do :; done; " + run + "-p 7002:80 --rootfs $R true; s=$?; kill $!; exit $s", 125, "7002"},
		{"name taken", run + "--name taken --rootfs $R true", 125, "taken"},
		{"name of a sandbox", run + "--name held --rootfs $R true", 125, "held"},
		{"bad name", run + "--name a/b --rootfs $R true", 125, "a/b"},
		{"address taken", "berth network connect front ns1 --ip 10.1.0.9 >/dev/null; " + run + "--rootfs $R true; s=$?; berth network disconnect front ns1; exit $s", 125, "10.1.0.9"},
		{"no network", "berth run --network nothere --rootfs $R true", 125, "nothere"},
		{"hostname too long", run + "--hostname " + strings.Repeat("x", 300) + " --rootfs $R true", 125, "hostname"},
		{"no user", run + "-u nobody9 --rootfs $R true", 125, "nobody9"},
		{"no directory to work in", run + "-w /etc/data --rootfs $R true", 125, "/etc/data"},
		{"no source", run + "--mount type=bind,source=/none,target=/x --rootfs $R true", 125, "/none"},
		{"no device", run + "--device /dev/none --rootfs $R true", 125, "/dev/none"},
		{"no sysctl", run + "--sysctl net.none=1 --rootfs $R true", 125, "net/none"},
		{"no seccomp profile", run + "--security-opt seccomp=/none --rootfs $R true", 125, "/none"},
		{"no runtime", "BERTH_RUNTIME=nothere " + run + "--rootfs $R true", 125, "nothere"},
		{"runtime that fails", "BERTH_RUNTIME=/bin/false " + run + "--rootfs $R true", 125, "false"},
		{"runtime that says nonsense", "BERTH_RUNTIME=/bin/echo " + run + "--rootfs $R true", 125, "echo"},
		{"no monitor", "mount --bind /dev/null /usr/bin/conmon && " + run + "--rootfs $R true; s=$?; umount /usr/bin/conmon; exit $s", 125, "conmon"},
		{"no such container", "berth start nothere", 1, "nothere"},
	} {
		out := d.answer(t, c.status, c.script)
		lines := 0
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, "hint: ") {
				lines++
			}
		}
		if lines != 1 || !strings.HasPrefix(out, "berth: ") || !strings.Contains(out, c.says) || len(out) > 700 {
			t.Errorf("%s: it says %s", c.name, out)
		}
		if after := d.must(t, "berth sandbox ls -q; berth port"); after != before {
			t.Errorf("%s: left behind: %s", c.name, after)
		}
		d.must(t, "berth check && berth ps -aq --filter status=exited | xargs -r berth rm >/dev/null")
		if pids := d.processes(); len(pids) > 0 {
			t.Errorf("%s: processes are left: %d", c.name, pids)
		}
	}
}

// TestContainersThatMisbehave runs what nobody wants to run.
func TestContainersThatMisbehave(t *testing.T) {
	t.Run("fork bomb", func(t *testing.T) {
		t.Parallel()
		d := newDock(t)
		// The first process forks once: a shell that cannot fork ends.
		d.must(t, "berth run -d --name bomb --network front --pids-limit 32 -m 64m --rootfs $R sh -c '(f() { sleep 1000 & f | f & }; f); exec sleep 1000'")
		d.await(t, "cat /sys/fs/cgroup/pids/berth/*/pids.events /sys/fs/cgroup/berth/*/pids.events 2>/dev/null | grep -q 'max [1-9]'")
		d.says(t, states, "bomb running")
		d.must(t, "berth check && berth rm -f bomb")
	})
	t.Run("ignores SIGTERM", func(t *testing.T) {
		t.Parallel()
		d := newDock(t)
		d.must(t, `berth run -d --name deaf --network none --rootfs $R sh -c 'trap "" TERM; echo ready; while :; do sleep 1000; done'`)
		d.await(t, "berth logs deaf | grep -q ready")
		begin := time.Now()
		d.must(t, "berth stop -t 1 deaf")
		if spent := time.Since(begin); spent < time.Second {
			t.Errorf("it was killed after %v", spent)
		}
		d.says(t, "berth inspect -f '{{.State.ExitCode}}' deaf", "137")
	})
	t.Run("fills its disk", func(t *testing.T) {
		t.Parallel()
		d := newDock(t)
		// Where it writes, where all containers write, and where their logs are.
		d.must(t, "berth network rm front && mkdir /run/small && mount -t tmpfs -o size=24m tmpfs /run/small")
		usual := d.env
		d.env = append(slices.Clone(usual), "BERTH_ROOT=/run/small/root")
		const fill = "dd if=/dev/zero bs=1M count=100 of="
		d.must(t, "berth network create --subnet 10.1.0.0/24 front && "+haveWeb+`berth run -d --name chatty --network none --rootfs $R sh -c 'while :; do echo tick; sleep 0.01; done'
			berth run -d --name greedy --network front --tmpfs /tmp:size=1m --rootfs host sleep 1000`)
		for _, file := range []string{"/tmp/fill", "/usr/fill"} {
			if out := d.answer(t, 1, "berth exec greedy "+fill+file); !strings.Contains(out, "No space left") {
				t.Errorf("no space for %s: %s", file, out)
			}
		}
		// Others go on, and everything can be taken away.
		d.must(t, "berth exec web echo fine && berth check && berth stop -t 0 greedy && berth rm greedy")
		d.await(t, "berth logs -n 1 chatty | grep -qx tick")
		d.must(t, "berth restart -t 0 web && berth exec web echo fine && berth rm -f web chatty && berth check")
		d.must(t, "berth network rm front && umount /run/small && rmdir /run/small")
		d.env = usual
	})
	t.Run("long lines of log", func(t *testing.T) {
		t.Parallel()
		d := newDock(t)
		d.must(t, "berth run -d --name loud --network none --rootfs $R sh -c 'head -c 100000000 /dev/zero | tr \"\\0\" x; echo; echo done'")
		d.says(t, "berth wait loud", "0")
		d.says(t, "berth logs -n 1 loud", "done")
		info, err := os.Stat(d.Path(strings.TrimSpace(d.must(t, "berth inspect -f '{{.LogPath}}' loud"))))
		if err != nil || info.Size() > 17<<20 {
			t.Errorf("the log has %d bytes: %v", info.Size(), err)
		}
		// Attached, nothing of it is lost.
		d.says(t, "berth run --rm --network none --rootfs $R sh -c 'head -c 20000000 /dev/zero | tr \"\\0\" x' | wc -c", "20000000")
	})
	t.Run("ends at once", func(t *testing.T) {
		t.Parallel()
		d := newDock(t)
		for i := range 8 {
			d.answer(t, i, fmt.Sprintf("berth run --rm --network none --rootfs $R sh -c 'exit %d'", i))
		}
		d.must(t, "for i in 1 2 3 4; do berth run -d --name j$i --network front -p 800$i:80 --rootfs $R true; done")
		d.says(t, "berth wait j1 j2 j3 j4", "0\n0\n0\n0")
		d.says(t, "berth ps -q; berth sandbox ls -q; berth port --format '{{.HostPort}}'", "")
	})
	t.Run("children that stay", func(t *testing.T) {
		t.Parallel()
		d := newDock(t)
		// Those of another pid namespace than the first process's do not end
		// with it.
		d.must(t, "berth run -d --name parent --network none --pid host --rootfs $R sh -c '(trap \"\" TERM HUP; exec sleep 1000) & exec sleep 0'")
		d.says(t, "berth wait parent", "0")
		d.says(t, states, "parent exited")
		if pids := d.processes(); len(pids) > 0 {
			t.Errorf("processes are left: %d", pids)
		}
	})
	t.Run("paused", func(t *testing.T) {
		t.Parallel()
		d := newDock(t)
		for _, verb := range []string{"berth stop -t 1 web", "berth rm -f web", "kill conmon"} {
			d.must(t, runWeb+" && berth pause web")
			if verb == "kill conmon" {
				verb = "kill -9 " + strings.Trim(fmt.Sprint(d.conmons()), "[]") + "; berth reconcile"
			}
			d.must(t, verb)
			d.must(t, "berth check && berth ps -aq | xargs -r berth rm")
		}
	})
}
