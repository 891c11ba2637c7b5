package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"berth"
	"berth/internal/plan"
	"berth/internal/store"
)

// A lock is one that a change needs beside the host's, which every change
// shares. The order of kinds is the order they are taken in.
type lock struct {
	kind      store.LockKind
	id        string
	exclusive bool
}

// A change is the body of a verb, run under its locks. It writes the intent
// and applies it.
type change func(ctx context.Context) error

// A refusal is a change whose intent is written and which the kernel refused.
type refusal struct {
	err    error
	forget func(*store.Tx) error // takes the intent back
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// deadOwners says that what a change needs is held by sandboxes whose namespace
// is gone.
type deadOwners struct{ ids []string }

func (d *deadOwners) Error() string { return "held by sandboxes " + strings.Join(d.ids, ", ") }

// errAgain lets a change start over: what it was based on has changed before
// it had its locks.
var errAgain = errors.New("changed meanwhile")

// attempts bounds how often a change starts over.
const attempts = 5

// do runs a change under locks, after a look whether the firewall is still
// ours. locks is asked anew each time, as what to lock may depend on the store.
func (e *Engine) do(ctx context.Context, locks func() ([]lock, error), fn change) error {
	defer e.kernel.Release()
	looked := e.o.DryRun
	var mended error // what came of it
	for n := 0; ; n++ {
		err := e.try(ctx, locks, fn)
		var dead *deadOwners
		var no *refusal
		switch {
		case err == nil:
			return nil
		case errors.As(err, &no):
			return e.settle(ctx, no)
		case n == attempts:
			return err
		case errors.Is(err, errHeal):
			if _, err := e.heal(ctx, nil); err != nil {
				return err
			}
		case errors.As(err, &dead):
			if err := e.bury(ctx, dead.ids); err != nil {
				return err
			}
		case errors.Is(err, errAgain):
		case looked && errors.Is(err, errDoubt):
			return cmp.Or(mended, err)
		case !looked && (errors.Is(err, berth.ErrExists) || errors.Is(err, berth.ErrNotFound) || errors.Is(err, errDoubt)):
			// What is refused must be true, and is not after a crash between the
			// record and the kernel. What cannot be mended may be another sandbox's,
			// and is no answer to what was asked.
			looked = true
			if !errors.Is(err, errDoubt) {
				if clean, lookErr := e.clean(ctx); clean || lookErr != nil {
					return err
				}
			}
			_, mended = e.heal(ctx, nil)
		default:
			return err
		}
	}
}

// errDoubt says that what a change found done already is not so in the kernel.
var errDoubt = fmt.Errorf("the kernel is not what was wanted before: %w", berth.ErrDrifted)

// errHeal says that the host must be read and mended first.
var errHeal = errors.New("the firewall was changed by somebody else")

func (e *Engine) try(ctx context.Context, locks func() ([]lock, error), fn change) error {
	unlock, err := e.lock(ctx, []lock{{kind: store.LockHost}})
	if err != nil {
		return err
	}
	defer unlock()
	// What a dry run has said is not there at its next look.
	if !e.o.DryRun || !e.looked.Swap(true) {
		drifted, err := e.drifted(ctx)
		if err != nil {
			return err
		}
		if drifted {
			return errHeal
		}
	}
	if locks != nil {
		more, err := locks()
		if err != nil {
			return err
		}
		unlockMore, err := e.lock(ctx, more)
		if err != nil {
			return err
		}
		defer unlockMore()
	}
	return fn(ctx)
}

// lock takes locks in their order and returns what gives them back.
func (e *Engine) lock(ctx context.Context, locks []lock) (func(), error) {
	slices.SortFunc(locks, func(a, b lock) int {
		c := cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.id, b.id))
		if c == 0 && a.exclusive && !b.exclusive {
			c = -1 // of two the stricter stays
		}
		return c
	})
	locks = slices.CompactFunc(locks, func(a, b lock) bool { return a.kind == b.kind && a.id == b.id })
	var held []func()
	release := func() {
		for _, u := range slices.Backward(held) {
			u()
		}
	}
	for _, l := range locks {
		u, err := e.store.Lock(ctx, l.kind, l.id, l.exclusive)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, u)
	}
	return release, nil
}

// settle brings the host to what the store wants after the kernel refused a
// change. If that is impossible with the new intent, the intent is forgotten
// and the host brought to what it was.
func (e *Engine) settle(ctx context.Context, no *refusal) error {
	e.o.Log.Info("the kernel refused a change: reading the host", "error", no.err)
	_, healed := e.heal(ctx, nil)
	if healed == nil {
		return nil
	}
	_, undone := e.heal(ctx, no.forget)
	if undone != nil && no.forget != nil {
		return errors.Join(no.err, fmt.Errorf("undo it: %w", undone))
	}
	return no.err
}

// commit writes an intent and applies the difference it makes. forget takes
// the intent back if the kernel cannot be brought there.
func (e *Engine) commit(ctx context.Context, intent func(*store.Tx) (plan.Delta, error), forget func(*store.Tx) error) error {
	var d plan.Delta
	err := e.store.Update(ctx, func(tx *store.Tx) (err error) {
		d, err = intent(tx)
		return err
	})
	if err != nil {
		return err
	}
	if err := e.apply(ctx, d); err != nil {
		return &refusal{err: err, forget: forget}
	}
	return nil
}

// bury forgets sandboxes whose namespace is gone.
func (e *Engine) bury(ctx context.Context, ids []string) error {
	for _, id := range ids {
		if err := e.leave(ctx, []string{id}, nil); err != nil && !errors.Is(err, berth.ErrNotFound) {
			return fmt.Errorf("forget sandbox %s, whose namespace is gone: %w", short(id), err)
		}
	}
	return nil
}

func short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}
