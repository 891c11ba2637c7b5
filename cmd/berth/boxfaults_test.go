package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// boxWishes is what is said of containers, ports and images.
const boxWishes = `berth images --format 'image {{.Repository}}'; berth ps -a --format '{{.Names}} {{.State}}'; berth port --format '{{.Sandbox}} {{.HostPort}}' | sort; berth sandbox ls --format '{{.Name}} {{.Addresses}}'
berth ps -aq | xargs -r berth inspect -f 'restarted {{.RestartCount}}'`

const (
	runWeb  = "berth run -d --name web --network front --ip 10.1.0.9 -p 8888:80 --rootfs $R sleep 100"
	haveWeb = runWeb + " >/dev/null && "
	madeWeb = "berth create --name web --network front --ip 10.1.0.9 -p 8888:80 --rootfs $R sleep 100 >/dev/null && "
)

// boxFaults are the verbs that change containers. What is between is a container
// that was made, and not started or not removed.
var boxFaults = []fault{
	{"run -d", "", runWeb, []string{madeWeb + "true"}},
	{"run --rm", "", "berth run --rm --name job --network front --ip 10.1.0.9 --rootfs $R true", []string{"berth create --name job --network front --ip 10.1.0.9 --rootfs $R true"}},
	{"start", madeWeb, "berth start web", nil},
	{"stop", haveWeb, "berth stop -t 0 web", []string{"berth kill web"}},
	{"rm -f", haveWeb, "berth rm -f web", []string{"berth stop -t 0 web"}},
	{"restart", haveWeb, "berth restart -t 0 web", nil},
	{"restart --rm", "berth run -d --rm --name web --network front --ip 10.1.0.9 --rootfs $R sleep 100 >/dev/null && ", "berth restart -t 0 web", nil},
	{"update", haveWeb, "berth update --pids-limit 50 web", nil},
}

// endings are containers that end while what their monitor runs then is killed.
var endings = []struct{ name, verb, want string }{
	{"stop", runWeb + " && berth stop -t 0 web", "web exited\nrestarted 0\n"},
	{"run -d --rm", "berth run -d --rm --name job --network front --ip 10.1.0.9 --rootfs $R true", ""},
	{"run --rm", "berth run --rm --name job --network front --ip 10.1.0.9 --rootfs $R true", ""},
	{"restart always", "berth run -d --restart always --name job --network front --ip 10.1.0.9 --rootfs $R " + once("exec sleep 100"),
		"job running\njob 10.1.0.9\nrestarted 1\n"},
}

// once is a command that fails when a container runs it first.
func once(then string) string {
	return "sh -c 'test -e /tmp/$HOSTNAME || { >/tmp/$HOSTNAME; exit 1; }; " + then + "'"
}

// TestContainersKilledAnywhere kills what changes containers at every point of
// its own. A new process brings all to order.
func TestContainersKilledAnywhere(t *testing.T) {
	if testing.Short() {
		t.Skip("kills some dozens of processes")
	}
	for _, f := range boxFaults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			f.boxes(t)
		})
	}
}

// boxes kills a verb at every point of containers.
func (f fault) boxes(t *testing.T) {
	var states []string
	for _, verb := range slices.Concat([]string{"true", f.verb}, f.between) {
		d := newDock(t)
		d.must(t, f.prepare+verb)
		states = append(states, d.must(t, boxWishes))
	}
	d := newDock(t)
	d.must(t, f.prepare+"true")
	log := filepath.Join(t.TempDir(), "log")
	d.must(t, f.verb, "BERTH_CRASH_LOG="+log)
	n := 0
	for i, name := range passed(t, log) {
		if !ofBoxes(name) && !*everywhere {
			continue
		}
		n++
		killings(t, n, i+1, name, func(t *testing.T, again bool) { f.killBox(t, i+1, again, states) })
	}
}

// ofBoxes reports whether a point is one of containers and their images; at the
// others verbs of networks are killed.
func ofBoxes(point string) bool {
	kind, _, _ := strings.Cut(point, ".")
	return slices.Contains([]string{"container", "image", "rootfs"}, kind)
}

// killBox kills the verb at one point and mends what it left.
func (f fault) killBox(t *testing.T, point int, again bool, states []string) {
	d := newDock(t)
	d.must(t, f.prepare+"true")
	out, err := d.sh("exec "+f.verb, fmt.Sprintf("BERTH_CRASH=%d", point))
	if !killed(err) {
		t.Fatalf("it was not killed: %v\n%s", err, out)
	}
	if again {
		if out, err := d.sh(f.verb); err != nil && !explained(out) && !strings.Contains(out, "belongs to container") && !strings.Contains(out, "no such container") {
			t.Errorf("run again: %v\n%s", err, out)
		}
	}
	d.order(t, states)
}

// order brings the host to order.
func (d *dock) order(t *testing.T, states []string) {
	t.Helper()
	if out, err := d.sh("berth reconcile"); err != nil {
		t.Fatalf("reconcile: %v\n%s", err, out)
	}
	if out, err := d.sh("berth check"); err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	d.must(t, "for i in $(berth images -q); do berth run --rm --network none $i true || exit 1; done")
	if now := d.must(t, boxWishes); !slices.Contains(states, now) {
		t.Errorf("what is wanted is neither as before nor as after:\n%swant one of:\n%s", now, strings.Join(states, "or\n"))
	}
}

// passed are the points in a log.
func passed(t *testing.T, log string) []string {
	t.Helper()
	b, err := os.ReadFile(log)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// TestEndKilledAnywhere kills what a monitor runs when its container has ended,
// at every point of its own.
func TestEndKilledAnywhere(t *testing.T) {
	if testing.Short() {
		t.Skip("kills some dozens of processes")
	}
	for _, e := range endings {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			d := newDock(t)
			log := filepath.Join(t.TempDir(), "log")
			d.must(t, e.verb, "BERTH_CRASH_CHILD_LOG="+log)
			d.settled(t, e.want)
			if e.want == "" { // what the monitors have in common goes with the next command
				eventually(t, "the monitor does not end", func() bool { return len(d.processes()) == 0 })
				d.order(t, []string{""})
			}
			for i, name := range passed(t, log) {
				if !ofBoxes(name) && !*everywhere {
					continue
				}
				t.Run(fmt.Sprintf("%d %s", i+1, name), func(t *testing.T) {
					t.Parallel()
					d := newDock(t)
					log := filepath.Join(t.TempDir(), "log")
					d.must(t, e.verb, "BERTH_CRASH_CHILD_LOG="+log, fmt.Sprintf("BERTH_CRASH_CHILD=%d", i+1))
					eventually(t, "the end was not killed", func() bool { return len(passed(t, log)) > i })
					d.order(t, []string{e.want})
				})
			}
		})
	}
}

// settled waits until containers are as is wanted.
func (d *dock) settled(t *testing.T, want string) {
	t.Helper()
	eventually(t, "containers are not as they should", func() bool {
		now, err := d.sh(boxWishes) // one may go between two of its commands
		return err == nil && now == want
	})
}

// eventually repeats a question until the answer is yes.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ask(); {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}
