package store

import (
	"fmt"

	"berth"
)

// Containers returns all containers, by id.
func (tx *Tx) Containers() ([]berth.Container, error) {
	b, err := tx.rootBucket(containers)
	if err != nil {
		return nil, err
	}
	return all[berth.Container](b, nil)
}

// Container returns a container by name, by id, or by the beginning of an id
// that no other container's has. Its error matches [berth.ErrNotFound] if there
// is none, [berth.ErrInvalid] if there are several.
func (tx *Tx) Container(ref string) (c berth.Container, err error) {
	err = tx.look("container", containers, containerIDs, ref, &c)
	return c, err
}

// PutContainer records a container under its id and its name. A name that is
// another one's is an error that matches [berth.ErrExists].
func (tx *Tx) PutContainer(c berth.Container) error {
	names, err := tx.rootBucketToWrite(containerIDs)
	if err != nil {
		return err
	}
	if id := names.get([]byte(c.Name)); id != nil && string(id) != c.ID {
		return fmt.Errorf("the name %s belongs to container %.12s: %w", cut(c.Name), id, berth.ErrExists)
	}
	if err := names.put([]byte(c.Name), []byte(c.ID)); err != nil {
		return err
	}
	b, err := tx.rootBucketToWrite(containers)
	if err != nil {
		return err
	}
	return b.putJSON([]byte(c.ID), c)
}

// DeleteContainer forgets a container. That it is not there is no error.
func (tx *Tx) DeleteContainer(id string) error {
	b, err := tx.rootBucketToWrite(containers)
	if err != nil {
		return err
	}
	v := b.get([]byte(id))
	if v == nil {
		return nil
	}
	var c berth.Container
	if err := b.decode(v, &c); err != nil {
		return err
	}
	names, err := tx.rootBucketToWrite(containerIDs)
	if err != nil {
		return err
	}
	if err := names.delete([]byte(c.Name)); err != nil {
		return err
	}
	return b.delete([]byte(id))
}

// Runs returns what of containers is in the kernel, by container.
func (tx *Tx) Runs() ([]berth.Run, error) { return all[berth.Run](tx.runBucket(runs), nil) }

// Run returns what of a container is in the kernel. Its error matches
// [berth.ErrNotFound] if nothing is.
func (tx *Tx) Run(container string) (r berth.Run, err error) {
	b := tx.runBucket(runs)
	v := b.get([]byte(container))
	if v == nil {
		return r, fmt.Errorf("container %s does not run: %w", cut(container), berth.ErrNotFound)
	}
	return r, b.decode(v, &r)
}

// PutRun records what of a container is in the kernel.
func (tx *Tx) PutRun(r berth.Run) error {
	return tx.runBucket(runs).putJSON([]byte(r.Container), r)
}

// DeleteRun forgets that a container was in the kernel.
func (tx *Tx) DeleteRun(container string) error {
	return tx.runBucket(runs).delete([]byte(container))
}
