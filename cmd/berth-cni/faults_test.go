package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// ported is a pod on two families with a port of each protocol.
const ported = `, "runtimeConfig": {"portMappings": [{"hostPort": 8888, "containerPort": 80, "protocol": "tcp"}, {"hostPort": 53, "containerPort": 53, "protocol": "udp"}]}`

// points counts where a call can be killed.
func points(t *testing.T, prepare func(*node) ask) []string {
	t.Helper()
	n := newNode(t)
	a := prepare(n)
	log := filepath.Join(t.TempDir(), "log")
	a.env = []string{"BERTH_CRASH_LOG=" + log}
	n.ok(t, a)
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// TestKilledAnywhere kills ADD and DEL at every point. The next ADD finishes
// what the first began, or DEL and GC take it away; CHECK and "berth check" are
// content, and nothing is left.
func TestKilledAnywhere(t *testing.T) {
	for _, v := range []struct {
		name    string
		prepare func(*testing.T, *node) ask
	}{
		{"first ADD", func(t *testing.T, n *node) ask {
			return n.pod(t, "web", front("1.1.0", ported)).as("ADD")
		}},
		{"second ADD", func(t *testing.T, n *node) ask {
			n.ok(t, n.pod(t, "other", front("1.1.0", "")).as("ADD"))
			return n.pod(t, "web", front("1.1.0", ported)).as("ADD")
		}},
		{"DEL", func(t *testing.T, n *node) ask {
			web := n.pod(t, "web", front("1.1.0", ported))
			n.ok(t, web.as("ADD"))
			return web.as("DEL")
		}},
		{"GC", func(t *testing.T, n *node) ask {
			web := n.pod(t, "web", front("1.1.0", ported))
			n.ok(t, web.as("ADD"))
			return web.as("GC")
		}},
	} {
		t.Run(v.name, func(t *testing.T) {
			all := points(t, func(n *node) ask { return v.prepare(t, n) })
			if len(all) < 4 {
				t.Fatalf("it can be killed at %q only", all)
			}
			for i, name := range all {
				if i > 0 && same(all[i-1], name) {
					continue
				}
				t.Run(fmt.Sprintf("%d %s", i+1, name), func(t *testing.T) {
					t.Parallel()
					n := newNode(t)
					n.kill(t, v.prepare(t, n), i+1)
				})
			}
		})
	}
}

// same reports whether nothing is done between two points.
func same(a, b string) bool {
	begins := strings.HasPrefix(b, "kernel.before:") || b == "kernel.sysctl" || strings.HasSuffix(b, ".before-commit")
	ended := strings.HasPrefix(a, "kernel.after:") || strings.HasSuffix(a, ".after-commit")
	return begins && (ended || strings.HasPrefix(a, "kernel.before:"))
}

// kill kills a call at one point; how it goes on changes from point to point.
func (n *node) kill(t *testing.T, a ask, point int) {
	a.env = []string{fmt.Sprintf("BERTH_CRASH=%d", point)}
	out, err := n.call(a)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("it was not killed: %v\n%s", err, out)
	}
	a.env = nil
	add := a.as("ADD")
	switch point % 3 {
	case 0:
		if a.command != "ADD" { // it was ready, and may be there still
			n.ok(t, a.as("DEL"))
		}
		fallthrough
	case 1:
		out, err := n.call(add)
		var answer *errorAnswer
		if errors.As(err, &answer) && answer.Code == 100 { // all had been done
			n.ok(t, a.as("DEL"))
			out, err = n.call(add)
		}
		if err != nil {
			t.Fatalf("ADD again: %v", err)
		}
		n.ok(t, add.as("CHECK").with(t, "prevResult", out))
		n.ok(t, add.as("CHECK").with(t, "prevResult", out))
	case 2: // the runtime gives up, and the namespace goes first
		n.must(t, "ip netns del web")
	}
	n.ok(t, a.as("DEL"))
	other := `[{"containerID": "other", "ifname": "eth0"}]`
	n.ok(t, a.as("GC").with(t, "cni.dev/valid-attachments", other))
	if out, err := n.sh("berth check"); err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	if out := n.must(t, "berth sandbox ls --format '{{.Name}}'"); strings.Contains(out, "web") {
		t.Errorf("still there: %s", out)
	}
	n.ok(t, a.as("GC").with(t, "cni.dev/valid-attachments", "[]"))
	n.clean(t)
}

// TestManyAtOnce adds and removes a hundred pods at a time on one network that
// the first of them makes.
func TestManyAtOnce(t *testing.T) {
	const many = 100
	n := newNode(t)
	var pods []ask
	for i := range many {
		a := ask{container: fmt.Sprintf("c%d", i), netns: fmt.Sprintf("/run/netns/c%d", i), ifname: "eth0"}
		a.conf = front("1.1.0", fmt.Sprintf(`, "runtimeConfig": {"portMappings": [{"hostPort": %d, "containerPort": 80}]}`, 9000+i))
		pods = append(pods, a)
	}
	n.must(t, fmt.Sprintf("for i in $(seq 0 %d); do ip netns add c$i; done", many-1))
	all := func(command string) (outs []string) {
		t.Helper()
		outs = make([]string, many)
		var wg sync.WaitGroup
		for i, p := range pods {
			wg.Go(func() {
				out, err := n.call(p.as(command))
				if outs[i] = out; err != nil {
					t.Errorf("%s %s: %v", command, p.container, err)
				}
			})
		}
		wg.Wait()
		return outs
	}
	seen := map[string]int{}
	for i, out := range all("ADD") {
		for f := range strings.FieldsSeq(out) {
			if strings.Contains(f, "/24\"") {
				seen[f]++
			}
		}
		pods[i] = pods[i].with(t, "prevResult", out)
	}
	if len(seen) != many {
		t.Errorf("%d pods have %d addresses", many, len(seen))
	}
	all("CHECK")
	for i := range pods {
		pods[i] = pods[i].with(t, "prevResult", "null")
	}
	// Half are taken away while the other half is taken away and added again.
	var wg sync.WaitGroup
	for i, p := range pods {
		wg.Go(func() {
			for _, command := range [][]string{{"DEL"}, {"DEL", "ADD"}}[i%2] {
				if _, err := n.call(p.as(command)); err != nil {
					t.Errorf("%s %s: %v", command, p.container, err)
				}
			}
		})
	}
	wg.Wait()
	n.must(t, "berth check")
	all("DEL")
	if out := n.must(t, "berth sandbox ls -q"); out != "" {
		t.Errorf("still there: %s", out)
	}
	n.clean(t)
}

// TestAfterReboot takes a pod away whose kernel and whose run store are gone.
func TestAfterReboot(t *testing.T) {
	n := newNode(t)
	web := n.pod(t, "web", front("1.1.0", ported))
	n.ok(t, web.as("ADD"))
	n.must(t, "ip netns del web; rm -rf /run/berth; ip link del bt-front; nft delete table inet berth; sysctl -q -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
	n.ok(t, web.as("DEL"))
	n.ok(t, web.as("DEL"))
	n.must(t, "ip netns add web")
	out := n.ok(t, web.as("ADD"))
	n.ok(t, web.as("CHECK").with(t, "prevResult", out))
	n.ok(t, web.as("DEL"))
	n.clean(t)
}
