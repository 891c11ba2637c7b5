package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// hostExec lets libcni, which is in the test's process, execute plugins on a
// node.
type hostExec struct {
	version.PluginDecoder
	n *node
}

func (e *hostExec) ExecPlugin(_ context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	cmd := e.n.Command(path)
	cmd.Env, cmd.Stdin = environ, bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		var answer types.Error
		if e := parse(stdout.Bytes(), &answer); e != nil {
			return nil, fmt.Errorf("%w: %s%s", err, stdout.String(), stderr.String())
		}
		return nil, &answer
	}
	return stdout.Bytes(), nil
}

func (e *hostExec) FindInPath(plugin string, dirs []string) (string, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, plugin)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no plugin %s", plugin)
}

// lib is libcni on a node, with a cache of its own.
func (n *node) lib(t *testing.T) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{n.dir + "/cni"}, t.TempDir(), &hostExec{n: n})
}

// TestLibcni is the life of two attachments as a runtime's library drives it:
// a chain of one, capabilities, a cache, and a garbage collection.
func TestLibcni(t *testing.T) {
	n := newNode(t)
	lib, ctx := n.lib(t), context.Background()
	list, err := libcni.ConfListFromBytes([]byte(`{"cniVersion": "1.1.0", "name": "front", "plugins": [
		{"type": "berth", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.11"}]]},
		 "capabilities": {"portMappings": true, "mac": true, "ips": true, "aliases": true, "bandwidth": true}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := lib.GetStatusNetworkList(ctx, list); err != nil {
		t.Fatalf("STATUS before: %v", err)
	}
	n.must(t, "ip netns add web && ip netns add api && ip netns add third")
	web := &libcni.RuntimeConf{ContainerID: "web1", NetNS: "/run/netns/web", IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "web-0"}},
		CapabilityArgs: map[string]any{
			"mac":          "02:00:00:00:00:17",
			"aliases":      []string{"www"},
			"bandwidth":    map[string]any{"ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 4000000},
			"portMappings": []map[string]any{{"hostPort": 8888, "containerPort": 80, "protocol": "TCP"}},
		}}
	api := &libcni.RuntimeConf{ContainerID: "api1", NetNS: "/run/netns/api", IfName: "net0",
		CapabilityArgs: map[string]any{"ips": []string{"10.1.0.77/24"}}}
	for _, rt := range []*libcni.RuntimeConf{web, api} {
		r, err := lib.AddNetworkList(ctx, list, rt)
		if err != nil {
			t.Fatalf("ADD %s: %v", rt.ContainerID, err)
		}
		got, err := current.GetResult(r)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"web1": "10.1.0.10/24", "api1": "10.1.0.77/24"}[rt.ContainerID]
		if a := got.IPs[0].Address.String(); a != want {
			t.Errorf("%s has %s, want %s", rt.ContainerID, a, want)
		}
		if err := lib.CheckNetworkList(ctx, list, rt); err != nil {
			t.Errorf("CHECK %s: %v", rt.ContainerID, err)
		}
	}
	n.must(t, "ip netns exec api ping -c1 -W1 10.1.0.10")
	if out := n.must(t, "berth sandbox inspect web1 && ip -n web link show eth0"); !contains(out, "web-0", "www", "8888", "02:00:00:00:00:17") {
		t.Errorf("labels, alias, port, MAC: %s", out)
	}
	if out := n.must(t, "tc qdisc; berth sandbox inspect web1"); !contains(out, "rate 8Mbit burst", "rate 4Mbit burst") {
		t.Errorf("rates: %s", out)
	}
	// The second of a range of two, then none: STATUS knows, ADD says so.
	third := &libcni.RuntimeConf{ContainerID: "third", NetNS: "/run/netns/third", IfName: "eth0"}
	if r, err := lib.AddNetworkList(ctx, list, third); err != nil {
		t.Errorf("the second of two addresses: %v, %v", r, err)
	}
	more := *third
	more.IfName = "eth1"
	if _, err := lib.AddNetworkList(ctx, list, &more); code(err) != 11 {
		t.Errorf("a third of two addresses: %v", err)
	}

	// CHECK finds what is not as it should be, and says what.
	n.must(t, "ip -n web addr del 10.1.0.10/24 dev eth0")
	if err := lib.CheckNetworkList(ctx, list, web); code(err) != 102 || !contains(err.Error(), "missing: address 10.1.0.10/24 on eth0") {
		t.Errorf("CHECK without an address: %v", err)
	}
	if err := lib.CheckNetworkList(ctx, list, api); err != nil {
		t.Errorf("CHECK of another: %v", err)
	}
	n.must(t, "berth reconcile")
	if err := lib.CheckNetworkList(ctx, list, web); err != nil {
		t.Errorf("CHECK after reconcile: %v", err)
	}

	// GC: of this network only.
	n.must(t, "berth network create other && berth sandbox create mine && berth network connect other mine && berth network connect front mine")
	if err := lib.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "api1", IfName: "net0"}}}); err != nil {
		t.Errorf("GC: %v", err)
	}
	if out := n.must(t, "berth sandbox ls; berth network ls; berth port"); !contains(out, "api1", "mine", "front", "other") || contains(out, "web1") {
		t.Errorf("after GC there are %s", out)
	}
	if err := lib.DelNetworkList(ctx, list, api); err != nil {
		t.Errorf("DEL: %v", err)
	}
	n.must(t, "berth sandbox rm mine")
	if err := lib.GCNetworkList(ctx, list, nil); err != nil {
		t.Errorf("GC of all: %v", err)
	}
	if out := n.must(t, "berth network ls --format '{{.Name}}'"); out != "other\n" {
		t.Errorf("after GC of all there are networks %s", out)
	}
	n.clean(t)
}

// code is the code of a plugin's error.
func code(err error) uint {
	var e *types.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}
