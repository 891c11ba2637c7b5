package engine_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth"
	"berth/engine"
	"berth/internal/netns"
)

// TestWireOfAnUnnamedNamespace: a namespace whose only name has gone may live
// on, and with it its end of a wire. The other sandbox is left by both.
func TestWireOfAnUnnamedNamespace(t *testing.T) {
	for name, leave := range map[string]func(*world, string) error{
		"disconnect": func(w *world, id string) error {
			return w.Disconnect(t.Context(), "wire", []string{id}, engine.DisconnectOptions{})
		},
		"reconcile": func(w *world, _ string) error {
			_, err := w.Reconcile(t.Context())
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.network(engine.NetworkSpec{Name: "wire", Driver: berth.Link, Options: map[string]string{"host": "false"}})
			// Whichever of the two comes first in whatever order.
			for going := range 2 {
				boxes := []*box{newBox(t), newBox(t)}
				var ids []string
				for _, b := range boxes {
					t.Cleanup(b.end)
					ids = append(ids, w.connect("wire", engine.NetNS(b.path()), engine.ConnectOptions{}).Sandbox)
				}
				w.clean()
				if ids[0] > ids[1] {
					slices.Reverse(ids)
					slices.Reverse(boxes)
				}
				held, err := netns.Open(boxes[going].path())
				if err != nil {
					t.Fatal(err)
				}
				defer held.Close()
				boxes[going].end()
				if err := leave(w, ids[going]); err != nil {
					t.Fatal(err)
				}
				w.clean()
				stays := boxes[1-going]
				if out := w.host.Run(t, "nsenter", "--net="+stays.path(), "ip", "-o", "link"); strings.Contains(out, "eth0") {
					t.Errorf("the wire has stayed: %s", out)
				}
				if err := w.Disconnect(t.Context(), "wire", []string{ids[1-going]}, engine.DisconnectOptions{}); err != nil {
					t.Fatal(err)
				}
				w.clean()
			}
		})
	}
}

// TestStoreHasOneName: a run directory is one store by whatever path it is
// asked for, before it is made and after.
func TestStoreHasOneName(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	w.o.Run = filepath.Join(dir, "link", "run")
	one := w.open()
	if _, err := one.CreateNetwork(t.Context(), engine.NetworkSpec{Name: "front"}); err != nil {
		t.Fatal(err)
	}
	for _, run := range []string{w.o.Run, filepath.Join(dir, "run")} {
		w.o.Run = run
		if _, err := w.open().CreateNetwork(t.Context(), engine.NetworkSpec{Name: "front"}); !errors.Is(err, berth.ErrExists) {
			t.Errorf("%s: %v, want that it exists", run, err)
		}
	}
	// The firewall was changed by somebody else: whose it is, is asked.
	w.host.Run(t, "nft", "add", "table", "inet", "other")
	w.o.Run = filepath.Join(dir, "run")
	if err := w.open().RemoveNetwork(t.Context(), "front", engine.RemoveOptions{}); err != nil {
		t.Error(err)
	}
}

// TestConnectionsOfTheDead: the host remembers no connection of an address that
// may be handed out again, by whatever way its sandbox went.
func TestConnectionsOfTheDead(t *testing.T) {
	for name, leave := range map[string]func(*world, *box, berth.Endpoint) error{
		"its namespace ended": func(w *world, b *box, _ berth.Endpoint) error {
			b.end()
			_, err := w.Reconcile(t.Context())
			return err
		},
		"its link was deleted": func(w *world, b *box, ep berth.Endpoint) error {
			w.host.Run(t, "nsenter", "--net="+b.path(), "ip", "link", "del", "eth0")
			return w.Disconnect(t.Context(), "front", []string{ep.Sandbox}, engine.DisconnectOptions{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.host.LAN(t)
			w.network(engine.NetworkSpec{Name: "front"})
			b := newBox(t)
			t.Cleanup(b.end)
			ep := w.connect("front", b.ref(), engine.ConnectOptions{})
			w.host.Run(t, "nsenter", "--net="+b.path(), "bash", "-c", "echo x >/dev/udp/192.0.2.2/9")
			from := "src=" + ep.Addr4().String() + " "
			if out := w.host.Run(t, "conntrack", "-L"); !strings.Contains(out, from) {
				t.Fatalf("no connection to forget: %s", out)
			}
			if err := leave(w, b, ep); err != nil {
				t.Fatal(err)
			}
			w.clean()
			if out := w.host.Run(t, "conntrack", "-L"); strings.Contains(out, from) {
				t.Errorf("the host remembers: %s", out)
			}
		})
	}
}

// TestFlushedTableIsHealed: a table without rules says nothing of whose it is,
// and is made anew by the next change.
func TestFlushedTableIsHealed(t *testing.T) {
	w := newWorld(t)
	w.network(engine.NetworkSpec{Name: "front"})
	w.host.Run(t, "nft", "flush", "table", "inet", "berth")
	ref, _ := w.netns()
	if _, err := w.Connect(t.Context(), "front", ref, engine.ConnectOptions{}); err != nil {
		t.Fatal(err)
	}
	w.clean()
}

// TestAnotherStoreIsLeftAlone: who asks with another run store sees that the
// host is not theirs, and what is there stays.
func TestAnotherStoreIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.network(engine.NetworkSpec{Name: "front"})
	ref, _ := w.netns()
	w.connect("front", ref, engine.ConnectOptions{})
	mine := w.o
	w.o.Root, w.o.Run = t.TempDir(), t.TempDir()
	other := w.open()
	w.o = mine
	if _, err := other.Check(t.Context()); !errors.Is(err, berth.ErrConflict) {
		t.Errorf("check: %v, want a conflict", err)
	}
	if _, err := other.Reconcile(t.Context()); !errors.Is(err, berth.ErrConflict) {
		t.Errorf("reconcile: %v, want a conflict", err)
	}
	w.clean()
}

// TestTroubleOfAnother: what cannot be mended in one sandbox is no answer to
// what is asked of another.
func TestTroubleOfAnother(t *testing.T) {
	w := newWorld(t)
	w.network(engine.NetworkSpec{Name: "front"})
	b := newBox(t)
	t.Cleanup(b.end)
	w.connect("front", b.ref(), engine.ConnectOptions{})
	w.host.Run(t, "nsenter", "--net="+b.path(), "ip", "link", "add", "x0", "type", "bridge")
	w.host.Run(t, "nsenter", "--net="+b.path(), "ip", "link", "set", "x0", "up")
	w.host.Run(t, "nsenter", "--net="+b.path(), "ip", "route", "replace", "default", "dev", "x0")
	if _, err := w.Reconcile(t.Context()); !errors.Is(err, berth.ErrExists) {
		t.Fatalf("reconcile: %v, want that a route is in the way", err)
	}
	ref, _ := w.netns()
	ep := w.connect("front", ref, engine.ConnectOptions{})
	spec, err := berth.ParsePortSpec("8080:80")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.RemoveNetwork(t.Context(), "nope", engine.RemoveOptions{}); err == nil || err.Error() != "remove network nope: no such network: not found" {
		t.Errorf("remove what is not there: %v", err)
	}
	if _, err := w.Connect(t.Context(), "front", ref, engine.ConnectOptions{}); err == nil || !strings.Contains(err.Error(), "it is connected already") {
		t.Errorf("connect twice: %v", err)
	}
	if _, err := w.Unpublish(t.Context(), ep.Sandbox, nil); err != nil {
		t.Errorf("unpublish nothing: %v", err)
	}
	for range 2 {
		if _, err := w.Publish(t.Context(), ep.Sandbox, spec, engine.PublishOptions{}); err != nil {
			t.Errorf("publish: %v", err)
		}
	}
	// But that it is published must be true.
	if out := w.host.Run(t, "nft", "delete", "element", "inet", "berth", "publish_any4", "{ tcp . 8080 }"); out != "" {
		t.Fatal(out)
	}
	if _, err := w.Publish(t.Context(), ep.Sandbox, spec, engine.PublishOptions{}); err != nil {
		t.Errorf("publish again: %v", err)
	}
	if out := w.host.Run(t, "nft", "list", "map", "inet", "berth", "publish_any4"); !strings.Contains(out, "8080") {
		t.Errorf("not published: %s", out)
	}
}
