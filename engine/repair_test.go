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
