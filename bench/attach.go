package main

import (
	"fmt"

	"berth/engine"
	"berth/internal/netns"
)

// A step is a pair of hosts that have so many endpoints already.
type step struct {
	from        int
	ours        *bed
	floor       *floor
	attach      [2]sample // ours, the floor's
	detach      [2]sample
	connectOnly sample
}

// attach compares connecting with the floor, and disconnecting with the
// kernel's deletion, as endpoints grow.
func attach() []row {
	marks := []int{1, 100, 900}
	if *quick {
		marks = []int{1, 20, 100}
	}
	var ladder []*step
	for _, m := range marks {
		s := &step{from: m, ours: newBed(), floor: newFloor(fresh())}
		for i := range m - 1 {
			s.ours.connect(fresh())
			s.floor.attach(i, fresh(), 0)
		}
		ladder = append(ladder, s)
	}
	for range 10 {
		settle()
	}
	var mine []*netns.NS // what was attached, in the order of it
	for i := range rounds(24) {
		sbs := several(2 * len(ladder))
		settle()
		for j, s := range ladder {
			a, b := sbs[2*j], sbs[2*j+1]
			k := s.from - 1 + i
			turn(i, func() {
				s.attach[0].timed(func() {
					s.connectOnly.timed(func() { s.ours.connect(a) })
					s.ours.publish(a, fmt.Sprintf("%d:80", 10000+k))
				})
			}, func() { s.attach[1].timed(func() { s.floor.attach(k, b, 0) }) })
			mine = append(mine, a)
		}
	}
	for j, a := range mine {
		i, s := j/len(ladder), ladder[j%len(ladder)]
		if s == ladder[0] {
			settle()
		}
		turn(i, func() { s.detach[0].timed(func() { s.ours.disconnect(a) }) },
			func() { s.detach[1].timed(func() { s.floor.detach(s.from - 1 + i) }) })
	}
	return append(climb(ladder), bulk()...)
}

// climb makes the rows of a ladder.
func climb(ladder []*step) (rows []row) {
	for _, s := range ladder {
		rows = append(rows, row{what: fmt.Sprintf("connect + publish, from endpoint %d on / bare netlink", s.from),
			ours: s.attach[0], reference: s.attach[1], unit: " ms", want: atMost(2)})
	}
	first, last := ladder[0], ladder[len(ladder)-1]
	rows = append(rows, row{what: fmt.Sprintf("connect + publish, from endpoint %d on / from endpoint %d on", last.from, first.from),
		ours: last.attach[0], reference: first.attach[0], unit: " ms", want: atMost(1.5)})
	rows = append(rows, row{what: fmt.Sprintf("connect alone, from endpoint %d on / bare netlink with its map elements", first.from),
		ours: first.connectOnly, reference: first.attach[1], unit: " ms"})
	for _, s := range ladder {
		rows = append(rows, row{what: fmt.Sprintf("disconnect, with %d endpoints / the kernel's deletion of one veth", s.from),
			ours: s.detach[0], reference: s.detach[1], unit: " ms", want: atMost(1.2)})
	}
	return rows
}

// bulk disconnects a hundred endpoints together.
func bulk() []row {
	const many = 100
	b, f := newBed(), newFloor(fresh())
	mine, theirs := several(many), several(many)
	var leave, remove, group sample
	for i := range rounds(8) {
		for _, how := range []*sample{&leave, &remove} {
			for _, sb := range mine {
				b.connect(sb)
			}
			settle()
			how.shared(many, func() {
				if how == &leave {
					b.disconnect(mine...)
				} else {
					check(b.RemoveNetwork(ctx, "front", engine.RemoveOptions{Force: true}))
				}
			})
		}
		b.create()
		for j, sb := range theirs {
			f.attach(i*many+j, sb, 7)
		}
		settle()
		group.shared(many, func() { f.detachGroup(7) })
	}
	return []row{
		{what: "disconnect of 100 together, each / the kernel's deletion of a group of 100, each", ours: leave, reference: group, unit: " ms", want: itselfMost(2)},
		{what: "network rm --force with 100 endpoints, each / the same", ours: remove, reference: group, unit: " ms", want: itselfMost(2)},
	}
}
