// The rules of the traces: the states that the player and the chest go through.

import { readFileSync, readdirSync } from 'node:fs';

const folder = new URL('../../src/cli/traces/', import.meta.url);
const read = name => readFileSync(new URL(name, folder), 'utf8');

export const world = JSON.parse(read('world.json'));
const items = new Map(world.items.map(item => [item.id, item]));
const recipes = new Map(world.recipes.map(recipe => [recipe.id, recipe]));

export const itemCode = id => items.get(id).code;
export const itemsCount = items.size;
export const stackMax = id => items.get(id).max_stack;

// The traces in the order of the demo's report: name and steps.
export function traces(order) {
  const steps = name => read(`${name}.jsonl`).split('\n').filter(Boolean).map(line => JSON.parse(line));
  const files = readdirSync(folder).filter(file => file.endsWith('.jsonl'));
  if (files.length !== order.length) throw new Error(`${files.length} traces, but the demo reports ${order.length}`);
  return order.map(name => ({ name, steps: steps(name) }));
}

// Returns the starting slots of an inventory: null or { item, count }.
export function starting(name) {
  const { layout, slots } = world.starting[name];
  const size = world.layouts[layout].reduce((sum, section) => sum + section.slots, 0);
  const inventory = Array(size).fill(null);
  for (const { slot, item, count } of slots) inventory[slot] = { item, count };
  return inventory;
}

// Returns the inventories that a step names.
export const inventoriesOf = step => (step.op === 'transfer' ? [step.from_inventory, step.to_inventory] : [step.inventory]);

// Returns the inventories after one step; the given ones do not change.
export function apply(inventories, step) {
  const next = { ...inventories };
  for (const name of inventoriesOf(step)) next[name] = next[name].map(stack => stack && { ...stack });
  const inventory = next[step.inventory];
  switch (step.op) {
    case 'drop':
      take(inventory, step.slot, step.count);
      break;
    case 'craft':
      craft(inventory, recipes.get(step.recipe), step.times);
      break;
    case 'move':
      move(inventory, step.from, step.to);
      break;
    case 'transfer': {
      const stack = take(next[step.from_inventory], step.from, step.count);
      put(next[step.to_inventory], step.to, stack);
      break;
    }
    default:
      throw new Error(`unknown operation ${step.op}`);
  }
  return next;
}

function take(inventory, slot, count) {
  const stack = inventory[slot];
  if (!stack || stack.count < count) throw new Error(`slot ${slot} has too little`);
  stack.count -= count;
  if (stack.count === 0) inventory[slot] = null;
  return { item: stack.item, count };
}

function put(inventory, slot, { item, count }) {
  const sum = (inventory[slot]?.count ?? 0) + count;
  if (inventory[slot] && inventory[slot].item !== item) throw new Error(`slot ${slot} has another item`);
  if (sum > stackMax(item)) throw new Error(`slot ${slot} is full`);
  inventory[slot] = { item, count: sum };
}

function move(inventory, from, to) {
  const [source, target] = [inventory[from], inventory[to]];
  if (!source || from === to) return;
  if (target?.item !== source.item) {
    [inventory[from], inventory[to]] = [target, source];
    return;
  }
  const moved = Math.min(source.count, stackMax(source.item) - target.count);
  target.count += moved;
  source.count -= moved;
  if (source.count === 0) inventory[from] = null;
}

function craft(inventory, { inputs, outputs }, times) {
  for (const [item, count] of Object.entries(inputs)) {
    let missing = count * times;
    for (let slot = 0; slot < inventory.length && missing > 0; slot++) {
      if (inventory[slot]?.item !== item) continue;
      missing -= take(inventory, slot, Math.min(missing, inventory[slot].count)).count;
    }
    if (missing > 0) throw new Error(`${missing} ${item} are missing`);
  }
  for (const [item, count] of Object.entries(outputs)) add(inventory, item, count * times);
}

// Adds to stacks of the item first, then to empty slots.
function add(inventory, item, count) {
  const fits = stack => stack?.item === item || stack === null;
  for (const wantsEmpty of [false, true]) {
    for (let slot = 0; slot < inventory.length && count > 0; slot++) {
      const stack = inventory[slot];
      if (!fits(stack) || (stack === null) !== wantsEmpty) continue;
      const added = Math.min(count, stackMax(item) - (stack?.count ?? 0));
      if (added > 0) inventory[slot] = { item, count: (stack?.count ?? 0) + added };
      count -= added;
    }
  }
  if (count > 0) throw new Error(`${count} ${item} do not fit`);
}

// Returns the slots that differ, with their new stack.
export function changedSlots(before, after) {
  const same = (one, other) => one?.item === other?.item && one?.count === other?.count;
  return after.flatMap((stack, slot) => (same(before[slot], stack) ? [] : [{ slot, stack, before: before[slot] }]));
}
