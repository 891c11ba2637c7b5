package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// conmons are the monitors that run on the host.
func (d *dock) conmons() (pids []int) {
	for _, pid := range d.processes() {
		if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(string(line), "conmon\x00") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// first is the pid of a container's first process.
func (d *dock) first(t *testing.T, name string) int {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(d.must(t, "berth inspect -f '{{.State.Pid}}' "+name)))
	if err != nil || pid <= 1 {
		t.Fatalf("pid %d of %s: %v", pid, name, err)
	}
	return pid
}

// says fails the test if shell commands do not write what is wanted.
func (d *dock) says(t *testing.T, script, want string) {
	t.Helper()
	if out := strings.TrimSpace(d.must(t, script)); out != want {
		t.Errorf("%s: %q, want %q", script, out, want)
	}
}

const states = "berth ps -a --format '{{.Names}} {{.State}}'"

// TestMonitorKilled kills conmon, by which nobody sees the end of its container.
func TestMonitorKilled(t *testing.T) {
	for _, next := range []string{"berth reconcile", "berth start web", "berth stop web", "berth rm -f web", "berth kill web || true"} {
		t.Run(next, func(t *testing.T) {
			t.Parallel()
			d := newDock(t)
			d.must(t, runWeb)
			pid := d.first(t, "web")
			for _, c := range d.conmons() {
				syscall.Kill(c, syscall.SIGKILL)
			}
			eventually(t, "the monitor does not end", func() bool { return len(d.conmons()) == 0 })
			d.says(t, states, "web dead")
			d.answer(t, 1, "berth check")
			d.must(t, next)
			if next != "berth start web" {
				d.says(t, "berth port --format '{{.HostPort}}'", "")
			}
			d.must(t, "berth check")
			if status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); len(status) > 0 && !strings.Contains(string(status), "\nState:\tZ") {
				t.Errorf("its first process is alive: %s", status)
			}
			switch next {
			case "berth start web":
				d.says(t, states, "web running")
			case "berth rm -f web":
				d.says(t, states, "")
			default:
				d.says(t, states, "web exited")
				d.says(t, "berth inspect -f '{{.State.ExitCode}} {{.State.Error}}' web", "255 its monitor ended before it")
			}
		})
	}
}

// TestFirstProcessKilled kills a container's first process.
func TestFirstProcessKilled(t *testing.T) {
	t.Parallel()
	d := newDock(t)
	d.must(t, runWeb)
	syscall.Kill(d.first(t, "web"), syscall.SIGKILL)
	d.says(t, "berth wait web", "137")
	d.says(t, states, "web exited")
	d.says(t, "berth port --format '{{.HostPort}}'", "")
	d.must(t, "berth check")
}

// TestAttendantKilled kills who waits for a container: it goes on, and its end
// leaves nothing.
func TestAttendantKilled(t *testing.T) {
	t.Parallel()
	d := newDock(t)
	cmd := d.Command("sh", "-c", "exec berth run --rm --name web --network none --rootfs $R sleep 100")
	cmd.Env = append(os.Environ(), d.env...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.await(t, "berth ps --format '{{.State}}' | grep -q running")
	for _, pid := range children(cmd.Process.Pid) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	cmd.Process.Kill()
	cmd.Wait()
	d.says(t, states, "web running")
	d.must(t, "berth kill web")
	d.await(t, `[ -z "$(berth ps -aq)" ]`)
	d.must(t, "berth reconcile")
}

// children are those of a process.
func children(pid int) (pids []int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", pid))
	for _, s := range strings.Fields(string(b)) {
		n, _ := strconv.Atoi(s)
		pids = append(pids, n)
	}
	return pids
}

// slowRuntime is a runtime that waits, while it should make a container, until
// somebody writes to /run/go.
const slowRuntime = `#!/bin/sh
case " $* " in *" create "*) echo $$ >/run/inflight; read x </run/go;; esac
exec runc "$@"
`

// TestRuntimeInFlight kills the runtime while it makes a container, or berth
// that waits for it, or both.
func TestRuntimeInFlight(t *testing.T) {
	for _, victim := range []string{"runtime", "berth", "monitor"} {
		t.Run(victim, func(t *testing.T) {
			t.Parallel()
			d := newDock(t)
			slow := filepath.Join(t.TempDir(), "slow")
			if err := os.WriteFile(slow, []byte(slowRuntime), 0o755); err != nil {
				t.Fatal(err)
			}
			d.env = append(d.env, "BERTH_RUNTIME="+slow)
			d.must(t, "mkfifo /run/go")
			cmd := d.Command("sh", "-c", "echo $$ >/run/berth.pid; exec "+runWeb)
			cmd.Env = append(os.Environ(), d.env...)
			out := &strings.Builder{}
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			d.await(t, "test -s /run/inflight")
			switch victim {
			case "runtime":
				d.must(t, "kill -9 $(cat /run/inflight)")
			case "berth":
				d.must(t, "kill -9 $(cat /run/berth.pid)")
			case "monitor":
				// It is put into its group, by which it is found, while the
				// runtime works.
				pids := d.conmons()
				for end := time.Now().Add(20 * time.Second); len(pids) == 0 && time.Now().Before(end); pids = d.conmons() {
				}
				for _, pid := range pids {
					syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			if err := cmd.Wait(); err == nil {
				t.Errorf("it ended well: %s", out)
			}
			if victim != "berth" {
				if lines := strings.Count(out.String(), "\n"); lines != 1 || cmd.ProcessState.ExitCode() != 125 {
					t.Errorf("exit status %d, and it said %s", cmd.ProcessState.ExitCode(), out)
				}
				d.must(t, "berth check")
			} else {
				d.says(t, states, "web created")
				d.answer(t, 1, "berth check")
			}
			d.must(t, "berth reconcile && berth check")
			if pids := d.processes(); len(pids) > 0 {
				t.Errorf("processes are left: %d", pids)
			}
			d.says(t, "berth port --format '{{.HostPort}}'; berth sandbox ls -q", "")
		})
	}
}

// TestManyContainersAtOnce starts and stops many at once.
func TestManyContainersAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("starts 50 containers")
	}
	t.Parallel()
	const many = 50
	d := newDock(t)
	all := func(script string) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range many {
			wg.Go(func() {
				if out, err := d.sh(script, fmt.Sprintf("I=%d", i), fmt.Sprintf("P=%d", 8000+i)); err != nil {
					t.Errorf("%d: %s: %v\n%s", i, script, err, out)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	all("berth run -d --name c$I --network front -p $P:80 --rootfs $R sleep 1000")
	d.says(t, "berth ps -q | wc -l; berth port --format '{{.HostPort}}' | sort -u | wc -l", "50\n50")
	d.says(t, "berth sandbox ls --format '{{.Addresses}}' | sort -u | wc -l", "50")
	d.must(t, "berth check")
	all("berth stop -t 0 c$I")
	d.says(t, "berth ps -q | wc -l; berth sandbox ls -q | wc -l", "0\n0")
	all("berth rm c$I")
}

// TestOneContainerByTwo lets two do things to one container, at the same time.
func TestOneContainerByTwo(t *testing.T) {
	for _, verbs := range [][2]string{
		{"berth start web", "berth start web"},
		{"berth start web", "berth stop -t 0 web"},
		{"berth stop -t 0 web", "berth stop -t 0 web"},
		{"berth restart -t 0 web", "berth restart -t 0 web"},
		{"berth start web", "berth rm -f web"},
		{"berth rm -f web", "berth rm -f web"},
		{"berth stop -t 0 web", "berth rm -f web"},
		{"berth kill web", "berth start web"},
	} {
		t.Run(verbs[0]+" "+verbs[1], func(t *testing.T) {
			t.Parallel()
			d := newDock(t)
			prepare := haveWeb
			if strings.HasPrefix(verbs[0], "berth start") {
				prepare = madeWeb
			}
			d.must(t, prepare+"true")
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					out, err := d.sh(verbs[i%2])
					ok := err == nil
					for _, excuse := range []string{"no such container", "does not run", "container not running"} {
						ok = ok || strings.Contains(out, excuse)
					}
					if !ok {
						t.Errorf("%s: %v\n%s", verbs[i%2], err, out)
					}
				})
			}
			wg.Wait()
			eventually(t, "what ends is not taken away", func() bool { _, err := d.sh("berth check"); return err == nil })
			state := strings.TrimSpace(d.must(t, states))
			want := map[string]bool{"web running": true, "web exited": true}
			if strings.Contains(verbs[1], "rm") {
				want = map[string]bool{"": true}
			}
			if strings.HasPrefix(verbs[0], verbs[1]) && strings.Contains(verbs[1], "start") {
				want = map[string]bool{"web running": true}
			}
			if !want[state] {
				t.Errorf("at last: %q", state)
			}
		})
	}
}

// TestRestartPolicies looks at who is started again, how often, and when.
func TestRestartPolicies(t *testing.T) {
	t.Run("no", func(t *testing.T) {
		t.Parallel()
		d := newDock(t)
		d.must(t, "berth run -d --name job --network none --rootfs $R false")
		d.says(t, "berth wait job", "1")
		d.says(t, states, "job exited")
	})
	t.Run("on-failure", func(t *testing.T) {
		t.Parallel()
		d := newDock(t)
		begin := time.Now()
		d.must(t, "berth run -d --restart on-failure:3 --name job --network front --rootfs $R sh -c 'exit 9'")
		d.await(t, states+" | grep -q exited")
		if spent := time.Since(begin); spent < 700*time.Millisecond {
			t.Errorf("three restarts took %v: it did not wait 100, 200 and 400 ms", spent)
		}
		d.says(t, "berth inspect -f '{{.RestartCount}} {{.State.ExitCode}}' job", "3 9")
		eventually(t, "monitors stay", func() bool { return len(d.conmons()) == 0 })
	})
	t.Run("on-failure of success", func(t *testing.T) {
		t.Parallel()
		d := newDock(t)
		d.must(t, "berth run -d --restart on-failure --name job --network none --rootfs $R "+once("exit 0"))
		d.await(t, states+" | grep -q exited")
		d.says(t, "berth inspect -f '{{.RestartCount}} {{.State.ExitCode}}' job", "1 0")
	})
	for _, policy := range []string{"always", "unless-stopped"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			d := newDock(t)
			d.must(t, "berth run -d --restart "+policy+" --name job --network front --rootfs $R "+once("exec sleep 1000"))
			d.await(t, "berth inspect -f '{{.RestartCount}} {{.State.Status}}' job | grep -q '1 running'")
			// One monitor, however often it is started.
			eventually(t, "its former monitor stays", func() bool { return len(d.conmons()) == 1 })
			d.must(t, "berth stop -t 0 job")
			d.says(t, states, "job exited")
			d.must(t, "berth start job")
			d.says(t, "berth inspect -f '{{.RestartCount}}' job", "0")
		})
	}
	t.Run("always, killed by its user", func(t *testing.T) {
		t.Parallel()
		d := newDock(t)
		for _, verb := range []string{"true", "berth pause job"} {
			d.must(t, "berth run -d --restart always --name job --network none --rootfs $R sleep 1000 && "+verb+" && berth kill job")
			d.says(t, "berth wait job", "137")
			d.says(t, states, "job exited")
			d.must(t, "berth rm job")
		}
	})
	for _, verb := range []string{"stop", "rm -f", "restart", "kill", "reconcile"} {
		t.Run(verb+" during the back-off", func(t *testing.T) {
			t.Parallel()
			d := newDock(t)
			d.must(t, "berth run -d --restart always --name job --network front --rootfs $R false")
			// From the sixth on there is time: 3.2 s.
			d.await(t, "test $(berth inspect -f '{{.RestartCount}}' job) -ge 5 && "+states+" | grep -q restarting")
			switch verb {
			case "kill":
				d.answer(t, 1, "berth kill job")
				d.answer(t, 1, "berth rm job")
				d.says(t, states, "job restarting")
			case "reconcile":
				d.must(t, "berth check && berth reconcile")
				d.says(t, states, "job restarting")
			case "restart":
				d.must(t, "berth restart job")
				d.says(t, "test $(berth inspect -f '{{.RestartCount}}' job) -lt 5", "")
			case "stop":
				d.must(t, "berth stop job")
				d.says(t, states, "job exited")
			case "rm -f":
				d.must(t, "berth rm -f job")
				d.says(t, states, "")
			}
			if verb == "stop" || verb == "rm -f" {
				if pids := d.processes(); len(pids) > 0 {
					t.Errorf("somebody still waits: %d", pids)
				}
			}
		})
	}
}
