package store

import (
	"errors"
	"fmt"
	"testing"

	"berth"
)

func container(n int) berth.Container {
	return berth.Container{ID: id(n), Name: fmt.Sprintf("c%d", n), Rootfs: "host"}
}

func TestContainers(t *testing.T) {
	s := open(t, t.TempDir(), testHost)
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutContainer(container(1)), tx.PutContainer(container(2)), tx.PutRun(berth.Run{Container: id(1), First: berth.Running{Pid: 7}}))
	})
	view(t, s, func(tx *Tx) error {
		for _, ref := range []string{"c1", id(1), id(1)[:12]} {
			if c, err := tx.Container(ref); err != nil || c.Name != "c1" || c.ID != id(1) {
				t.Errorf("%s: %+v, %v", ref, c, err)
			}
		}
		if _, err := tx.Container("c3"); !errors.Is(err, berth.ErrNotFound) {
			t.Errorf("c3: %v", err)
		}
		if r, err := tx.Run(id(1)); err != nil || r.First.Pid != 7 {
			t.Errorf("%+v, %v", r, err)
		}
		if _, err := tx.Run(id(2)); !errors.Is(err, berth.ErrNotFound) {
			t.Errorf("a run of what does not run: %v", err)
		}
		all, err := tx.Containers()
		if len(all) != 2 {
			t.Errorf("%d containers", len(all))
		}
		return err
	})
	taken := container(3)
	taken.Name = "c1"
	if err := s.Update(t.Context(), func(tx *Tx) error { return tx.PutContainer(taken) }); !errors.Is(err, berth.ErrExists) {
		t.Errorf("a name that is taken: %v", err)
	}
	update(t, s, func(tx *Tx) error { return errors.Join(tx.DeleteContainer(id(1)), tx.DeleteRun(id(1))) })
	update(t, s, func(tx *Tx) error { return tx.PutContainer(taken) })
	view(t, s, func(tx *Tx) error {
		c, err := tx.Container("c1")
		if c.ID != id(3) {
			t.Errorf("c1 is %s", c.ID)
		}
		return err
	})
}
